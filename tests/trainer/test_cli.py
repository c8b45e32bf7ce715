"""The command `prototrain`, in the source tree and as installed from a wheel."""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

from trainer import cli

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("trainer", "metriclearn", "retrieval", "models")


def test_the_list_of_verbs_is_quick(program):
    """Without arguments and with --help: one line per verb, and TensorFlow is not loaded."""
    for arguments in ((), ("--help",)):
        code, out, err = program("trainer.cli", *arguments)
        assert (code, err) == (0, "")
        for verb, (_, what) in cli.VERBS.items():
            assert re.search(rf"^  {verb} +{re.escape(what)}$", out, re.M)
    code = "import sys, trainer.cli as cli; print(cli.usage()); print('tensorflow' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert out.endswith("False\n")


def test_an_unknown_verb_names_the_nearest(program):
    code, out, err = program("trainer.cli", "evla", "--model=toy")
    assert (code, out) == (1, "")
    assert err.startswith("error: 'evla' is not a verb of prototrain. Did you mean 'eval'?")
    assert err.count("\n") == 1


def test_every_verb_is_the_program_of_its_module():
    for verb, (module, _) in cli.VERBS.items():
        source = pathlib.Path(importlib.util.find_spec(module).origin).read_text()
        assert '\nif __name__ == "__main__":\n' in source, verb


def explained(text, heading):
    """Names of the flags that a section of a help text explains."""
    section = re.search(rf"^{re.escape(heading)}:\n((?:  .*\n?)*)", text, re.M)
    return re.findall(r"^  (?:-\w, )?--([^:=\s]+):", section[1] if section else "", re.M)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_explains_the_essentials_and_lists_the_rest(helps, verb):
    short, full = helps[verb]["help"], helps[verb]["helpfull"]
    assert f"prototrain {verb}" in short or verb == "audit"
    own, essential = (explained(short, h) for h in ("Flags of this program", "Essential keys"))
    assert len(own) <= 12 and len(essential) <= 14
    for text in (short, full):
        assert "Traceback" not in text
    names = set(re.findall(r"^  (?:-\w, )?--([^:=\s]+)[:=]", short, re.M))
    assert names <= set(re.findall(r"^  (?:-\w, )?--([^:=\s]+):", full, re.M))
    assert len(names) == len(re.findall(r"^  (?:-\w, )?--([^:=\s]+)[:=]", short, re.M))


def test_help_has_headings_by_prefix_and_the_models_own_keys(helps):
    text = helps["train"]["help"]
    assert re.search(r"^model\.optimizer:\n  --model\.optimizer\.msgd\.momentum=0\.9$", text, re.M)
    assert "model.margin" not in text and "With --model=MODULE" in text
    assert "--model.margin: [float]" in helps["train"]["models.simple"]


@pytest.mark.parametrize(
    "arguments, now",
    [
        (["retrieval.embed", "--pixel_range=0,1"], "--pixel_range is now --input_range"),
        (
            ["retrieval.compare", "A", "B", "--nopictures"],
            "--nopictures is now --images, or --noim",
        ),
        (["retrieval.eval", "--model=toy", "--where=a=b"], "--where is now --dataset.test_where"),
        (
            ["retrieval.index", "build", "--store=S", "--output=I", "--index=Flat"],
            "--index=Flat: build writes --output; a FAISS factory is now --factory=Flat",
        ),
        (
            ["retrieval.index", "search", "--store=S", "--output=I"],
            "--output: search writes no new folder; the index is now --index",
        ),
        (["retrieval.index", "serch"], "'serch': give one action of build, add, remove, search"),
        (["retrieval.index"], "give ACTION; ACTION is missing"),
        (["retrieval.index", "add", "--store=S"], "add needs --index"),
        (
            ["retrieval.index", "search", "--store=S", "--index=I", "--recall=0.9"],
            "--recall has no effect: search takes --store, --index, --k, --category, --page",
        ),
        (["retrieval.compare", "A"], "name two evaluations"),
        (
            ["retrieval.compare", "A", "B", "--similarity=dot"],
            "--similarity has no effect: it is for stores",
        ),
    ],
)
def test_an_old_or_wrong_spelling_is_one_line(program, arguments, now):
    code, out, err = program(*arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"error: {now}")


# ---------------------------------------------------------------------------- installed

# A model that needs our packages and a second, installed model beside it.
MINE = """
import numpy as np
import tensorflow as tf
from models import simple
from retrieval.metrics import rank_queries
from trainer.config import Config
from trainer.layers import ModelDict

assert callable(simple.build)
config = Config({"trainer.experiment_name": "exp-mine", "model.num_steps": 2,
                 "trainer.summary_save_interval": 0, "model.batch_size": 8})

def batches(first, count, noise):
    products = np.arange(first, first + count) % 12
    images = np.random.default_rng(5).integers(0, 256, (12, 8, 8, 1))[products]
    images = np.clip(images + np.random.default_rng(noise).normal(0, 60, images.shape), 0, 255)
    return tf.data.Dataset.from_tensor_slices({
        "image": images.astype(np.uint8), "label": products.astype(np.int64),
        "product": np.array([f"p{n}" for n in products]),
        "id": np.array([f"{noise}/{n}" for n in range(count)]),
        "category": np.full(count, "all"),
    }).batch(8, drop_remainder=True)

def datasets(start_step=0):
    return {"trn": batches(0, 24, 0).repeat(), "vld": batches(0, 24, 1),
            "retrieval_query": batches(0, 8, 2), "retrieval_index": batches(0, 16, 3)}

def build(inputs=None, train_phase=False):
    if inputs is None:
        inputs = {"image": tf.compat.v1.placeholder(tf.uint8, [None, 8, 8, 1], "image")}
    m = ModelDict(image=inputs["image"])
    x = tf.reshape(tf.cast(m.image, tf.float32) / 127.5 - 1, [-1, 64])
    m.embeddings = x @ tf.compat.v1.get_variable("w", [64, 4])
    m.loss = tf.reduce_mean(m.embeddings ** 2)
    return m
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Folder of the programs of a new environment that the project's wheel is installed in.

    The environment also sees the packages of the running one, but not the project's own: a `.pth`
    file adds a folder without running the `.pth` files in it, such as those of editable installs.
    """
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "--no-deps", "--no-index", "--no-build-isolation", f"-w{folder}", source]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("prototrain-*.whl")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv/bin/python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    place = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (pathlib.Path(place.strip()) / "running.pth").write_text("\n".join(sorted(paths)))
    install = ["--python", python, "install", "--no-deps", "--no-index", "--force-reinstall"]
    subprocess.run([*pip, *install, wheel], check=True)
    return folder


def run(installed, folder, *command):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    program = installed / "venv/bin" / command[0]
    return subprocess.run(
        [program, *command[1:]], cwd=folder, env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_wheel_holds_data_files_too(installed):
    (wheel,) = installed.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and path.suffix not in (".pyc", ".md"):
                assert name in names, name
    assert "models/__init__.py" not in names
    assert {n.split("/")[0] for n in names if ".dist-info" not in n} == set(PACKAGES)


def test_files_of_the_user_live_beside_ours(installed, tmp_path):
    """A user's trainer.py and retrieval.py are left alone, and models/ has theirs and ours."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models/mine.py").write_text(MINE)
    for name in ("trainer", "retrieval", "metriclearn"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the file of the user ran')\n")
    done = run(installed, tmp_path, "prototrain", "train", "--model=models.mine")
    assert done.returncode == 0, done.stderr
    assert "done: step 2" in done.stdout
    done = run(installed, tmp_path, "prototrain", "eval", "--model=models.mine")
    assert done.returncode == 0, done.stderr
    assert "8 queries against 16 catalogue items" in done.stdout
    assert (tmp_path / "experiments/exp-mine/analysis/model-2-report.html").exists()
    grid = ["--grid=model.num_steps=1", "--trainer.summary_save_interval=0"]
    done = run(installed, tmp_path, "prototrain", "sweep", "--model=models.mine", *grid)
    assert done.returncode == 0, done.stderr + done.stdout
    assert (tmp_path / "experiments/exp-mine-sweep/trial-000/metrics.jsonl").exists()
    # `python -m` searches the current folder first, before any code of ours.
    done = run(installed, tmp_path, "python", "-m", "retrieval.eval", "--model=models.mine")
    assert done.returncode and "the file of the user ran" in done.stderr


@pytest.mark.parametrize(
    "hiding, arguments",
    [
        ("trainer.py", ["retrieval.eval", "--model=mine"]),
        ("trainer.py", ["models.pretrained", "efficientnet_lite0"]),
        ("retrieval.py", ["trainer.inspect", "--model=mine"]),
        ("models/__init__.py", ["trainer.inspect", "--model=mine"]),
        ("models/__init__.py", ["trainer.inspect", "--model=models.simple"]),
    ],
)
def test_a_file_that_hides_a_package_is_named(installed, tmp_path, hiding, arguments):
    (tmp_path / hiding).parent.mkdir(exist_ok=True)
    (tmp_path / hiding).write_text("")
    (tmp_path / "mine.py").write_text(MINE)
    done = run(installed, tmp_path, "python", "-m", *arguments)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert str(tmp_path / hiding) in done.stderr
    assert re.search("rename|remove this file", done.stderr)
