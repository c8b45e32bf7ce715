"""models.simple from data to report, as a user runs it."""

import json
import signal
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from trainer import checkpoints, meters

SHORT = [
    "--trainer.validation_step_interval=0",
    "--trainer.evaluation_interval=0",
    "--trainer.best_metric=",
    "--trainer.print_interval=1",
    "--model.lr_schedule.method=constant",
    "--model.lr_schedule.constant.value=0.001",
]


def train(program, name, *arguments):
    code, out, err = program(
        "trainer.main", "--model=models.simple", f"--trainer.experiment_name={name}", *arguments
    )
    assert code == 0, err
    return program.folder / "experiments" / name


def test_trained_embedding_beats_raw_pixels_on_unseen_characters(program):
    folder = train(program, "glyphs", "--model.num_steps=250", "--trainer.evaluation_interval=250")
    code, out, err = program(
        "retrieval.eval", "--model=models.simple", "--trainer.experiment_name=glyphs"
    )
    assert code == 0, err
    figures = json.loads((folder / "analysis" / "model-250-eval.json").read_text())
    raw = figures["raw_pixels"]["recall@k"]
    assert 0.6 < raw["1"] < 0.72
    assert figures["recall@k"]["1"] > raw["1"] + 0.08
    assert figures["num_unanswerable"] == 0 and figures["num_catalogue"] > 500
    assert figures["num_queries"] > 5000
    live = [line for line in meters.read_metrics(folder) if "recall@1" in line]
    assert live[-1]["step"] == 250 and live[-1]["recall@1"] > 0.75
    found = json.loads((folder / "analysis" / "model-250-top_retrieved.json").read_text())
    assert len(found) == figures["num_queries"]
    (events,) = (folder / "summaries" / "trn").glob("events*")
    tags = {
        value.tag
        for event in tf.compat.v1.train.summary_iterator(str(events))
        for value in event.summary.value
    }
    assert {"input/image/0", "hardest_triplet/image/0"} <= tags
    assert any(tag.endswith("mining/effective_rank") for tag in tags)
    picture = Image.open(folder / "analysis" / "model-250-top_retrieved.png")
    assert min(picture.size) > 400
    assert checkpoints.steps(folder / "checkpoint" / "best") == [250]


def test_four_towers_train_as_one(program):
    """For ten steps: sums in another order differ by 2e-6, and later select other triplets."""

    def losses(count):
        arguments = [f"--trainer.num_towers={count}", "--model.num_steps=10", *SHORT]
        return [e["loss"] for e in meters.read_metrics(train(program, f"t{count}", *arguments))]

    one, four = losses(1), losses(4)
    assert len(one) == 10
    np.testing.assert_allclose(four, one, rtol=1e-4)


def test_killed_and_resumed_ends_with_the_same_weights(program):
    arguments = ["--model.num_steps=30", "--trainer.checkpoint_save_interval=10", *SHORT]
    arguments += ["--model.dropout=0.2", "--dataset.augment", "--model.batch_size=64"]
    whole = train(program, "whole", *arguments)
    folder = program.folder / "experiments" / "killed"

    def at_15():
        lines = meters.read_metrics(folder)
        return bool(lines) and lines[-1]["step"] >= 15

    code, _, _ = program.interrupt(
        at_15,
        "trainer.main",
        "--model=models.simple",
        "--trainer.experiment_name=killed",
        *arguments,
        by=signal.SIGKILL,
    )
    assert code == -signal.SIGKILL
    assert checkpoints.steps(folder / "checkpoint")[-1] in (10, 20)
    train(program, "killed", *arguments)
    a, b = (tf.train.load_checkpoint(str(f / "checkpoint" / "model-30")) for f in (whole, folder))
    names = checkpoints.shapes(str(whole / "checkpoint" / "model-30"))
    assert any("Adam" in name for name in names)
    for name in names:
        np.testing.assert_array_equal(a.get_tensor(name), b.get_tensor(name), err_msg=name)
    assert meters.read_metrics(whole) == meters.read_metrics(folder)


# ---------------------------------------------------------------------------- a user's own pictures


@pytest.fixture
def shop(tmp_path):
    """A folder of JPEGs and its manifest: 12 products, 6 pictures each, a colour a product."""
    random = np.random.default_rng(0)
    folder = tmp_path / "shop"
    folder.mkdir()
    lines = ["path,label,category,split,role"]
    for product in range(12):
        colour = random.integers(0, 256, 3)
        split = "train" if product < 6 else "val" if product < 9 else "test"
        for i in range(6):
            noise = random.integers(-20, 20, (40, 30, 3))
            name = f"p{product}-{i}.jpg"
            Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(folder / name)
            role = "train" if split == "train" else "query" if i else "catalogue"
            lines.append(f"{name},product-{product},toys,{split},{role}")
    (folder / "products.csv").write_text("\n".join(lines) + "\n")
    return folder


def on_manifest(shop, *arguments):
    return [
        "--model=models.simple",
        f"--dataset.manifest={shop / 'products.csv'}",
        "--model.batch_size=8",
        "--dataset.images_per_product=2",
        "--model.num_steps=3",
        *arguments,
    ]


def test_a_manifest_is_trained_and_evaluated_by_flags_alone(program, shop):
    name = "it's [1] {0} %d"
    arguments = on_manifest(shop, f"--trainer.experiment_name={name}")
    code, out, err = program("trainer.main", *arguments)
    assert code == 0, err
    printed = out.splitlines()[-1].split("then run `")[1].removesuffix("`")
    done = subprocess.run(
        printed, shell=True, cwd=program.folder, env=program._environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    (report,) = (program.folder / "experiments" / name / "analysis").glob("model-*-eval.json")
    figures = json.loads(report.read_text())
    assert (figures["num_queries"], figures["num_catalogue"]) == (15, 3)


def empty_label(shop):
    path = shop / "products.csv"
    path.write_text(path.read_text().replace("p1-2.jpg,product-1,", "p1-2.jpg,,"))


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda shop: (shop / "p2-3.jpg").unlink(), ["products.csv:17", "p2-3.jpg"]),
        (empty_label, ["products.csv:10", "label"]),
        (
            lambda shop: (shop / "p0-0.jpg").write_bytes((shop / "p0-0.jpg").read_bytes()[:300]),
            ["p0-0.jpg"],
        ),
        (lambda shop: (shop / "products.csv").unlink(), ["products.csv"]),
    ],
    ids=["missing file", "empty label", "truncated JPEG", "no manifest"],
)
def test_bad_pictures_are_named(program, shop, damage, words):
    damage(shop)
    code, out, err = program("trainer.main", *on_manifest(shop, "--model.num_steps=20"))
    last = err.splitlines()[-1]
    assert code == 1 and last.startswith("error: ") and "Traceback" not in err
    for word in words:
        assert word in last


def rewrite(shop, change):
    path = shop / "products.csv"
    header, *rows = path.read_text().splitlines()
    rows = [row for row in map(change, rows) if row]
    path.write_text("\n".join([header, *rows]) + "\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda row: "" if ",val," in row else row,
        lambda row: "" if ",val," in row and "-0.jpg" not in row else row,
        lambda row: "" if ",test," in row or ",val," in row else row,
    ],
    ids=["no val", "one image per product of val", "train alone"],
)
def test_without_anything_to_validate_on_it_trains(program, shop, change):
    rewrite(shop, change)
    code, out, err = program("trainer.main", *on_manifest(shop, "--trainer.evaluation_interval=2"))
    assert code == 0 and "Traceback" not in err, err
    assert "no product of the split val has two images: no validation" in err


@pytest.mark.parametrize(
    "arguments, change, words",
    [
        (["--model.batch_size=14"], str, "needs 7 products of dataset.images_per_product=2 images;"
         " the split train has 6: lower model.batch_size to 12"),
        (["--model.batch_size=9"], str, "model.batch_size=9 is not a multiple of"),
        (["--dataset.images_per_product=0"], str, "dataset.images_per_product=0"),
        ([], lambda row: "" if ",train," in row else row, "no row has the split train"),
        (
            [],
            lambda row: "" if ",train," in row and "-0.jpg" not in row else row,
            "every product of the split train has one image",
        ),
    ],
    ids=["too few products", "no multiple", "no images", "no train", "one image each"],
)  # fmt: skip
def test_a_batch_that_cannot_be_filled_names_the_key(program, shop, arguments, change, words):
    rewrite(shop, change)
    code, out, err = program("trainer.main", *on_manifest(shop, *arguments))
    assert code == 1 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: ") and words in err.splitlines()[-1]


def test_evaluation_without_a_checkpoint_says_how_to_train(program):
    code, out, err = program("retrieval.eval", "--model=models.simple")
    assert code == 1 and "Traceback" not in err
    assert "no checkpoint" in err.lower() and "python -m trainer.main --model=models.simple" in err
