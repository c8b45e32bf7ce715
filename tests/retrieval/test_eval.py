"""`python -m retrieval.eval` as a user runs it."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from retrieval import metrics
from retrieval.ranking import kernels

ROOT = pathlib.Path(__file__).parents[2]


def run(module, *arguments, cwd):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(tiny):
    done = run("retrieval.eval", "--model=tiny", cwd=tiny)
    assert done.returncode == 0, done.stderr
    return done, tiny / "experiments/exp-tiny/analysis"


def test_figures_and_counts(evaluated):
    done, folder = evaluated
    result = json.loads((folder / "model-3-eval.json").read_text())
    assert (result["num_queries"], result["num_catalogue"]) == (22, 25)
    assert result["num_unanswerable"] == 2  # products 10 and 11 are not in the catalogue
    assert set(result["recall@k"]) == {"1", "5", "10", "20"}
    assert 0 < result["map@r"] <= result["recall@k"]["20"] <= 1
    assert set(result["raw_pixels"]["recall@k"]) == {"1", "5", "10", "20"}
    assert f"{result['recall@k']['1']:.3f}" in done.stdout
    assert next(iter(result)) == "verdict"
    said = done.stdout.splitlines()
    assert said[0] == result["verdict"]["sentence"] and "checkpoint: " in "".join(said[1:3])
    assert "22 queries against 25 catalogue items; 2 queries" in done.stdout


def test_what_a_model_offers_untrained_is_a_baseline(evaluated):
    """From the same pass over the images, by its own initial weights."""
    _, folder = evaluated
    result = json.loads((folder / "model-3-eval.json").read_text())
    patterns = np.random.default_rng(5).integers(0, 256, (40, 8, 8, 1))

    def pixels(first, count, face):
        noise = np.random.default_rng([6, face]).normal(0, 60, (count, 8, 8, 1))
        found = np.clip(patterns[first : first + count] + noise, 0, 255).astype(np.uint8)
        return found.reshape(count, -1).astype(np.float32), np.arange(first, first + count)

    ranking = metrics.rank_queries(*pixels(10, 22, 1), *pixels(12, 25, 2))
    expected = metrics.summarize(ranking)["recall@k"]
    found = result["frozen_backbone"]["recall@k"]
    assert found == {str(k): pytest.approx(rate) for k, rate in expected.items()}
    assert set(result["frozen_backbone_color"]["recall@k"]) == set(found)
    projected = folder / "model-3-projector"
    assert len((projected / "tensors.tsv").read_text().splitlines()) == 22 + 25
    assert any(path.name.startswith("events.out.tfevents") for path in projected.iterdir())


def test_top_retrieved_agrees_with_the_figures(evaluated):
    _, folder = evaluated
    result = json.loads((folder / "model-3-eval.json").read_text())
    lists = json.loads((folder / "model-3-top_retrieved.json").read_text())
    assert lists[0]["media"] == "1/p<10>"
    assert all(len(entry["results"]) == 20 for entry in lists)
    for k in (1, 5):
        hits = sum(any(item["relevant"] for item in entry["results"][:k]) for entry in lists)
        assert hits / 20 == pytest.approx(result["recall@k"][str(k)])
    scores = [item["score"] for item in lists[0]["results"]]
    assert scores == sorted(scores, reverse=True)


def test_picture_is_a_picture(evaluated):
    _, folder = evaluated
    picture = Image.open(folder / "model-3-top_retrieved.png")
    colors = {color for _, color in picture.convert("RGB").getcolors(2**24)}
    assert {(0x2E, 0x8B, 0x57), (0xC0, 0x39, 0x2B)} <= colors


def test_no_checkpoint_says_how_to_train(tiny):
    done = run("retrieval.eval", "--model=tiny", "--trainer.experiment_name=none", cwd=tiny)
    assert done.returncode == 1
    assert "python -m trainer.main --model=tiny" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_of_another_shape_is_named(tiny):
    done = run("retrieval.eval", "--model=tiny", "--model.size=4", cwd=tiny)
    assert done.returncode == 1
    assert "w is [64, 16] there and [64, 4] here" in done.stderr
    assert "Traceback" not in done.stderr


def test_figures_are_those_of_the_library(evaluated_files):
    folder, expected, done = evaluated_files
    result = json.loads((folder / "embeddings-eval.json").read_text())
    for k, rate in expected["recall@k"].items():
        assert result["recall@k"][str(k)] == pytest.approx(rate)
        low, high = result["interval95"][f"recall@{k}"]
        assert low <= rate <= high
    assert result["map@r"] == pytest.approx(expected["map@r"])
    assert result["num_self_excluded"] == 60
    assert 0 <= result["num_decided_in_float64"] <= 60 and result["filter"] in kernels.FILTERS
    assert "Ranks are exact" in done.stdout


def test_files_beside_the_report(evaluated_files):
    folder, _, _ = evaluated_files
    names = {path.name.removeprefix("embeddings-") for path in folder.iterdir()}
    assert names == {
        "eval.json", "top_retrieved.json", "histogram.json", "histogram.png", "recall_at_k.png",
        "queries.csv", "suspected_labels.csv", "report.html", "figures.csv",
    }  # fmt: skip


MISTAKES = [
    (["--query_labels=q.txt", "--factory=No"], "--factory=No: FAISS cannot make it for 4 dimen"),
    (["--query_labels=q.txt", "--factory=PQ2"], "--factory=PQ2: cannot be trained on 4 items"),
    (
        ["--query_labels=q.txt", "--index=IVF4,Flat"],
        "--index=IVF4,Flat: there is no such folder; a FAISS factory is now --factory=IVF4,Flat",
    ),
    (
        ["--query_labels=q.txt", "--index=.", "--factory=Flat"],
        "--index and --factory: give one of them",
    ),
    (["--query_labels=q.txt", "--where=a=b"], "--where is now --dataset.test_where, a key of the"),
    (["--query_labels=q.txt", "--ks="], "--ks=: takes whole numbers from 1 on"),
    (
        ["--query_labels=q.txt", "--model=models.simple"],
        "--model has no effect: --queries evaluates without a model",
    ),
    (["--feedback=f", "--ks=1", "--top=9"], "--queries has no effect: --feedback takes --ks"),
    (["--query_labels=q.txt", "--catalogue_ids=q.txt"], "--catalogue_labels, _ids and _categories"),
    ([], "q.npy: needs --query_labels, a file of one product id per line"),
    (["--query_labels=q.txt", "--catalogue=q.txt"], "q.txt: needs --catalogue_labels"),
    (
        ["--query_labels=q.txt", "--catalogue=q.txt", "--catalogue_labels=q.txt"],
        "q.txt: is not a NumPy array (.npy)",
    ),
    (
        ["--query_labels=q.txt", "--catalogue=no.npy", "--catalogue_labels=q.txt"],
        "no.npy: cannot be read: there is no such file or folder",
    ),
    (["--query_labels=q.txt", "--catalogue=no_store"], "no_store: cannot be read: there is no"),
    (["--query_labels=q.txt", "--output=q.txt"], "--output=q.txt: File exists"),
]


EACH = """
import json, sys
from retrieval import eval
for arguments in json.loads(sys.argv[1]):
    try:
        eval.run(["eval", *arguments])
    except SystemExit as ended:
        assert ended.code == 1
"""


def test_a_mistake_is_one_line(run_eval, write_set, tmp_path):
    write_set(tmp_path, "q", np.eye(4, dtype=np.float32) + 1, ["a", "a", "b", "b"])
    common = ["--queries=q.npy", "--output=out"]
    done = run_eval(tmp_path, json.dumps([[*common, *given] for given, _ in MISTAKES]), code=EACH)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert len(said) == len(MISTAKES), done.stderr
    for line, (_, message) in zip(said, MISTAKES, strict=True):
        assert line.startswith(f"error: {message}")


def test_a_truncated_array_is_named(run_eval, write_set, tmp_path):
    write_set(tmp_path, "q", np.ones((9, 4), np.float32), ["a"] * 9)
    data = (tmp_path / "q.npy").read_bytes()
    (tmp_path / "q.npy").write_bytes(data[:-20])
    done = run_eval(tmp_path, "--queries=q.npy", "--query_labels=q.txt", "--output=out")
    assert done.returncode == 1
    assert re.match(r"error: q\.npy: not a NumPy array that can be read: .*\n$", done.stderr)
