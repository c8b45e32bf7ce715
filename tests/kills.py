"""Kills the project's programs at random times and looks at what is left: see `run`.

A fault is one of: SIGKILL at a random time; SIGKILL before the n-th change of the file system; a
disk that takes no file beyond a random size. After each, the old or the new result must be there,
whole; after the next run without a fault the new one, and nothing else.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
from collections.abc import Callable

import numpy as np
import optuna
import runs
import savedmodels
import tensorflow as tf
from forks import forked, program
from PIL import Image

from retrieval.catalogue import index, versions
from retrieval.embeddings import store
from trainer import checkpoints, files, filesets, meters

# ---------------------------------------------------------------------------- kinds


@dataclasses.dataclass
class Kind:
    """A program that publishes something.

    Attributes:
      prepare: makes what the program reads, in a folder.
      commands: the command lines to choose from.
      check: raises AssertionError unless what is there is whole. Its second argument is the number
        of the command if the last run ended well, and then nothing else may be there.
    """

    prepare: Callable
    commands: list
    check: Callable
    share: int  # of the kills; fewer of what is slow


def digest(folder):
    """{name: SHA-256} of the files in a folder, without marks and locks."""
    paths = (p for p in pathlib.Path(folder).rglob("*") if p.is_file())
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in paths
        if p.name not in (files.MARK, files.LOCK)
    }


def litter(folder, pattern):
    """Raises AssertionError for a file whose path in a folder does not match."""
    strange = [name for name in digest(folder) if not re.fullmatch(pattern, name)]
    hidden = [str(p) for p in pathlib.Path(folder).rglob(".*") if p.is_dir()]
    assert not strange + hidden, f"litter: {strange + hidden}"


POINTS = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)


def write_store(folder, rows):
    names = np.array([f"i{n:03}" for n in range(80)])[rows]
    manifest = store.begin(folder, {"checkpoint_sha256": "w"})
    products = np.array([f"p{n % 9}" for n in range(80)])[rows]
    store.append(folder, manifest, store.Embedded(POINTS[rows], names, products, products), 1)
    store.finish(folder, manifest)


def prepare_index():
    write_store("s", slice(0, 60))
    write_store("more", slice(60, 80))
    pathlib.Path("ids.txt").write_text("i001\ni002\n")
    index.build("s", "i", "IVF2,SQ8")


def check_index(ended):
    with index.Catalogue.open("i", everything=True) as found:
        rows = found.find(POINTS[5:6], 1).rows[0]
        assert found.items["id"][int(rows[0])].as_py() == "i005"
        count = found.manifest["count"]
    assert count in (60, 80, 58, 78), count
    if ended is not None:
        known = r"current|versions/\d{6}/(index\.faiss|items\.arrow|manifest\.json|lists\.ivfdata)"
        litter("i", known)
        numbers = versions.numbers("i")
        assert len(numbers) <= versions.KEPT + 1
        assert len(os.listdir("i/versions")) == len(numbers)


def prepare_embed():
    os.mkdir("images")
    for n in range(12):
        Image.fromarray(np.full((6, 6, 3), n * 20, np.uint8)).save(f"images/{n:02}.png")
    savedmodels.write_tf2_signature("saved", size=(6, 6))


def check_embed(ended):
    if os.path.exists("s/manifest.json"):
        store._known("s")  # readable, complete or not
    if ended is not None:
        found = store.read("s").embeddings
        assert np.array_equal(found, np.repeat([[n * 40.0] for n in range(12)], 3, 1))
        litter("s", r"manifest\.json|\d{5}\.(npy|parquet)")


def prepare_eval():
    write_store("q", slice(0, 40))
    write_store("c", slice(20, 80))
    note_outputs("eval", "r")


def note_outputs(kind, folder):
    """Runs each command of a kind once and notes what it writes."""
    known = []
    for arguments in KINDS[kind].commands:
        os.mkdir(folder)
        code, text, _ = forked(program(arguments))
        assert code == 0, text
        known.append(digest(folder))
        shutil.rmtree(folder)
    os.mkdir(folder)
    pathlib.Path("known.json").write_text(json.dumps(known))


def check_outputs(folder):
    def check(ended):
        known = json.loads(pathlib.Path("known.json").read_text())
        if ended is not None:
            assert digest(folder) == known[ended], sorted(digest(folder))
            litter(folder, ".*")
        elif os.path.isdir(folder):
            filesets.settle(folder)
            found = {n: v for n, v in digest(folder).items() if not n.startswith(".")}
            assert found in (*known, {}), sorted(found)

    return check


def prepare_compare():
    write_store("q", slice(0, 40))
    write_store("c", slice(20, 80))
    for name, similarity in (("a", "cosine"), ("b", "dot")):
        arguments = ["eval", "--queries=q", "--catalogue=c", f"--output={name}"]
        code, text, _ = forked(program([*arguments, f"--similarity={similarity}"]))
        assert code == 0, text
    note_outputs("compare", "r")


def prepare_audit():
    prepare_embed()
    shutil.copy("images/01.png", "images/again.png")
    note_outputs("audit", "reports")


TRAIN = [
    "train", "--model=toy_served", "--model.num_steps=12", "--trainer.checkpoint_save_interval=2",
    "--trainer.evaluation_interval=3", "--trainer.summary_save_interval=4",
    "--trainer.best_metric=loss",
]  # fmt: skip


def prepare_train():
    keep = ["--trainer.max_checkpoints_to_keep=99", "--trainer.experiment_name=whole"]
    code, text, _ = forked(program([*TRAIN, *keep]))
    assert code == 0, text


def check_train(ended):
    for folder in ("experiments/toy/checkpoint", "experiments/toy/checkpoint/best"):
        for step in checkpoints.steps(folder):
            prefix = f"{folder}/model-{step}"
            reader = tf.train.load_checkpoint(prefix)
            found = {name: reader.get_tensor(name) for name in checkpoints.shapes(prefix)}
            known = runs.weights("experiments/whole", step)
            assert found.keys() == known.keys()
            for name, value in known.items():
                np.testing.assert_array_equal(found[name], value, err_msg=f"{prefix} {name}")
    if ended is not None:
        runs.assert_equal_runs("experiments/toy", "experiments/whole")
        whole = meters.read_metrics("experiments/whole")
        passes = [(line["loss"], line["step"]) for line in whole if "examples" in line]
        best = [f"model-{min(passes)[1]}.{end}" for end in ("data-00000-of-00001", "index")]
        assert sorted(os.listdir("experiments/toy/checkpoint/best")) == best
        own = r"config\.(txt|json)|provenance\.json|metrics\.jsonl|code-\d+\.diff|summaries/.*"
        ours = r"checkpoint/(checkpoint|(best/)?model-\d+\.(index|data-00000-of-00001))"
        litter("experiments/toy", f"{own}|{ours}")


def check_fresh(ended):
    """`--fresh` of a finished run: the old run, none, or the new one."""
    if steps := checkpoints.steps("experiments/toy/checkpoint"):
        check_train(None)
        assert steps[-1] <= 12
    if ended is not None:
        check_train(ended)


def prepare_export():
    prepare_train()


def check_export(ended):
    if not os.path.exists("served"):
        return
    with open("served/saved_model.pb", "rb") as data:
        assert len(data.read()) > 1000
    note = files.read_json("served/assets.extra/prototrain.json")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], "served")
        outputs = loaded.signature_def["serving_default"].outputs
        assert list(outputs) == list(note["outputs"])
        name = next(iter(outputs.values())).name
        assert np.isfinite(session.run(name, {"x:0": np.ones([2, 4])})).all()
    if ended is not None:
        assert list(outputs) == [("prediction", "hidden")[ended]]
        strange = set(os.listdir()) - {"served", "experiments"}
        assert not strange, f"litter: {strange}"


SWEEP = [
    "sweep", "--model=toy_served", "--grid=toy.dropout=0.1,0.3", "--model.num_steps=4",
    "--trainer.evaluation_interval=2",
]  # fmt: skip


def check_sweep(ended):
    folder = "experiments/toy-sweep"
    if ended is None:
        return
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder}/sweep.db")
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 2, study.trials
    values = json.loads(pathlib.Path("known.json").read_text())
    assert [t.value for t in study.trials] == values
    litter(folder, r"sweep\.(db|html|png)|events[^/]*hparams|trial-\d{3}(\.log|/[^.].*)")


def prepare_sweep():
    code, text, _ = forked(program(SWEEP))
    assert code == 0, text
    storage = "sqlite:///experiments/toy-sweep/sweep.db"
    study = optuna.load_study(study_name="sweep", storage=storage)
    pathlib.Path("known.json").write_text(json.dumps([t.value for t in study.trials]))
    shutil.rmtree("experiments")


STORED = ["eval", "--queries=q", "--catalogue=c", "--output=r"]
EXPORT = ["export", "--model=toy_served", "--trainer.experiment_name=whole", "--output=served"]
KINDS = {
    "index": Kind(
        prepare_index,
        [
            ["index", "build", "--store=s", "--output=i", "--factory=IVF2,SQ8"],
            ["index", "build", "--store=s", "--output=i", "--factory=IVF2,SQ8", "--on_disk"],
            ["index", "add", "--store=more", "--index=i"],
            ["index", "add", "--store=s", "--index=i"],
            ["index", "remove", "--ids=ids.txt", "--index=i"],
        ],
        check_index,
        24,
    ),
    "embed": Kind(
        prepare_embed,
        [["embed", "--saved_model=saved", "--folder=images", "--output=s", "--shard_rows=2",
          "--batch_size=2"]],
        check_embed,
        12,
    ),
    "eval": Kind(
        prepare_eval,
        [STORED, [*STORED, "--similarity=dot", "--ks=1,3"]],
        check_outputs("r"),
        14,
    ),
    "compare": Kind(
        prepare_compare,
        [["compare", "a", "b", "--output=r"], ["compare", "b", "a", "--output=r"]],
        check_outputs("r"),
        10,
    ),
    "audit": Kind(
        prepare_audit,
        [["audit", "folder", "images", "--report=reports/a.html", f"--max_bits={n}"]
         for n in (0, 64)],
        check_outputs("reports"),
        12,
    ),
    "train": Kind(prepare_train, [TRAIN], check_train, 12),
    "fresh": Kind(prepare_train, [[*TRAIN, "--fresh", "--yes"]], check_fresh, 6),
    "export": Kind(
        prepare_export,
        [[*EXPORT, "--overwrite", f"--outputs={name}"] for name in ("prediction", "hidden")],
        check_export,
        6,
    ),
    "sweep": Kind(prepare_sweep, [SWEEP], check_sweep, 4),
}  # fmt: skip


# ---------------------------------------------------------------------------- the trial


def tried(name, kills, seed, work):
    """Faults of one kind in one folder, one after the other; returns {fault: how often}."""
    kind, random = KINDS[name], np.random.default_rng([seed, sum(name.encode())])
    os.makedirs(work)
    os.chdir(work)
    code, text, _ = forked(kind.prepare)
    assert code == 0, text
    counts, last = collections.Counter(), 2.0
    while sum(counts.values()) < kills:
        number = int(random.integers(len(kind.commands)))
        task = program(kind.commands[number])
        fault = random.choice(["time", "change", "change", "limit"])
        options = {
            "time": {"kill_after": random.uniform(0, 1.1 * last)},
            "change": {"changes": int(random.geometric(0.04)) - 1},
            "limit": {"limit": int(2 ** random.uniform(4, 13))},
        }[fault]
        code, text, _ = forked(task, **options)
        assert code == -signal.SIGKILL or "Traceback" not in text, f"{options}: {text}"
        if code == -signal.SIGKILL or code:
            counts["full disk" if fault == "limit" else "kill"] += 1
            if sum(counts.values()) % 25 == 0:
                print(f"{name}: {dict(counts)} so far", flush=True)
        assert_ok(kind, None, f"{options}, then {text}")
        if name in ("embed", "train", "sweep") and code == 0:  # a finished one stays as it is
            assert_ok(kind, number, text)
            remove_result(name)
        elif random.random() < 0.5:
            code, text, last = forked(task)
            if "is not in i (" in text:  # the killed removal had been completed
                assert code == 1
                code, text, last = forked(program(kind.commands[0]))
            assert code == 0, text
            assert_ok(kind, number, text)
            if name in ("embed", "train", "sweep"):
                remove_result(name)
    return counts


def remove_result(name):
    """Lets a program that resumes start from the beginning."""
    result = {"embed": "s", "train": "experiments/toy", "sweep": "experiments"}
    shutil.rmtree(result[name])


def assert_ok(kind, ended, text):
    code, found, _ = forked(lambda: kind.check(ended))
    assert code == 0, f"{text}\n{found}"


def run(kills, kinds, seed, top):
    """Tries some kinds of programs in the folder `top`.

    Prints the number of faults per kind, and for a failure its folder and what was printed; returns
    the number of failures.
    """
    failed = 0
    for name in kinds:
        part = KINDS[name].share / sum(KINDS[each].share for each in kinds)
        work = os.path.join(top, name)
        try:
            counts = tried(name, max(1, round(kills * part)), seed, work)
            print(f"{name}: {', '.join(f'{v} x {k}' for k, v in counts.items())}", flush=True)
            os.chdir(top)
            shutil.rmtree(work)
        except AssertionError as error:
            failed += 1
            print(f"{name}: FAILED in {work}, --seed={seed}\n{error}", flush=True)
    return failed
