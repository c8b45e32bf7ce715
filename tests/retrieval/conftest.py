"""What the tests share: a tiny model with a checkpoint, evaluated files, stores of two models."""

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from metriclearn.datasets import ProductTable
from retrieval import metrics
from retrieval.catalogue import index
from retrieval.embeddings import store
from trainer import commandline

ROOT = pathlib.Path(__file__).parents[2]
NASTY = '<script>alert("x")</script>&\'\x07é'

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # stores.py

TINY = """
import numpy as np
import tensorflow as tf
from trainer.config import Config
from trainer.layers import ModelDict

config = Config({"trainer.experiment_name": "exp-tiny"})
config.declare("model.size", 8, "Embedding size.")

def batches(first, count, face):
    products = np.arange(first, first + count)
    patterns = np.random.default_rng(5).integers(0, 256, (40, 8, 8, 1))
    noise = np.random.default_rng([6, face]).normal(0, 60, (count, 8, 8, 1))
    images = np.clip(patterns[products] + noise, 0, 255).astype(np.uint8)
    names = np.array([f"p<{n}>" for n in products])
    return tf.data.Dataset.from_tensor_slices({
        "image": images, "label": products.astype(np.int64), "product": names,
        "id": np.array([f"{face}/p<{n}>" for n in products]),
        "category": np.where(products % 2, "odd", "even"),
    }).batch(7)

def datasets(start_step=0):
    train = batches(0, 10, 0)
    return {"trn": train.repeat(), "vld": train,
            "retrieval_query": batches(10, 22, 1), "retrieval_index": batches(12, 25, 2)}

def build(inputs=None, train_phase=False):
    if inputs is None:
        inputs = {"image": tf.compat.v1.placeholder(tf.uint8, [None, 8, 8, 1], "image")}
    model = ModelDict(image=inputs["image"])
    if "label" in inputs:
        model.labels = inputs["label"]
    x = tf.reshape(tf.cast(model.image, tf.float32) / 127.5 - 1, [-1, 64])
    w = tf.compat.v1.get_variable("w", [64, config["model.size"]])
    model.embeddings = tf.nn.l2_normalize(x @ w, axis=1)
    return model

def frozen_features(inputs, outputs):
    x = tf.reshape(tf.cast(inputs["image"], tf.float32), [-1, 64])
    one = tf.compat.v1.ones_initializer()  # in no checkpoint
    return x * tf.compat.v1.get_variable("frozen/scale", [64], initializer=one)
"""


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """On the tests' tiny data FAISS's threads, those of two processes, wait for each other."""
    import faiss

    faiss.omp_set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder that holds the module `tiny` and experiments/exp-tiny with a checkpoint at step 3."""
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.py").write_text(textwrap.dedent(TINY))
    checkpoint = folder / "experiments/exp-tiny/checkpoint"
    os.makedirs(checkpoint)
    sys.path.insert(0, str(folder))
    try:
        model = commandline.load_model("tiny")
        # The run used another size than the module's own: eval must take the run's.
        model.config["model.size"] = 16
        (folder / "experiments/exp-tiny/config.json").write_text(model.config.to_json())
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            tf.compat.v1.set_random_seed(1)
            batch = tf.compat.v1.data.make_one_shot_iterator(model.datasets()["vld"]).get_next()
            model.build(batch)
            session.run(tf.compat.v1.global_variables_initializer())
            saver = tf.compat.v1.train.Saver(save_relative_paths=True)
            saver.save(session, str(checkpoint / "model"), 3)
    finally:
        sys.path.remove(str(folder))
        del sys.modules["tiny"]
    return folder


@pytest.fixture
def tiny_model(tiny, monkeypatch):
    """The module `tiny`, configured as its experiment, in its folder."""

    monkeypatch.syspath_prepend(tiny)
    monkeypatch.chdir(tiny)
    model = commandline.load_model("tiny")
    model.config["model.size"] = 16
    yield model
    sys.modules.pop("tiny", None)


@pytest.fixture
def tiny_table(tiny_model, monkeypatch):
    """Gives the tiny model a table of its data set: eight images, two of them queries."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), np.uint8)
    roles = ["query", "query", *[""] * 6]
    rows = ProductTable(products=list("abcdabcd"), ids=list("12345678"), roles=roles, images=pixels)
    monkeypatch.setattr(tiny_model, "table", lambda: rows, raising=False)
    return rows


@pytest.fixture
def points():
    return np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32)


@pytest.fixture(scope="session")
def run_eval():
    """Runs `retrieval.eval`, or some code, in a folder and returns the finished process."""
    return _run


@pytest.fixture(scope="session")
def write_set():
    """Writes embeddings as .npy with text files beside them."""
    return _write_set


@pytest.fixture(scope="session")
def write_store():
    """Writes a store and returns its folder."""
    return _write_store


def _run(folder, *arguments, code=None):
    command = (
        [sys.executable, "-m", "retrieval.eval"] if code is None else [sys.executable, "-c", code]
    )
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def _write_set(folder, name, points, labels, ids=None):
    np.save(folder / f"{name}.npy", points)
    (folder / f"{name}.txt").write_text("".join(f"{label}\n" for label in labels))
    if ids is not None:
        (folder / f"{name}_ids.txt").write_text("".join(f"{i}\n" for i in ids))


@pytest.fixture(scope="session")
def evaluated_files(tmp_path_factory):
    """(output, expected figures, finished process) of evaluated .npy files."""
    folder = tmp_path_factory.mktemp("evaluated")
    random = np.random.default_rng(2)
    labels = random.integers(0, 15, 60)
    points = random.normal(size=(15, 8))[labels] + random.normal(size=(60, 8))
    names = [f"{NASTY}{label}" for label in labels]
    _write_set(folder, "q", points.astype(np.float32), names, [f"{NASTY}/{n}" for n in range(60)])
    (folder / "categories.txt").write_text("".join(f"<k{n % 2}>\n" for n in labels))
    code = (
        "import sys; from retrieval import eval\n"
        "try: eval.run(['eval', *sys.argv[1:]])\n"
        "except SystemExit as ended: assert not ended.code and 'tensorflow' not in sys.modules"
    )
    done = _run(
        folder, "--queries=q.npy", "--query_labels=q.txt", "--query_ids=q_ids.txt",
        "--query_categories=categories.txt", "--factory=IVF4,Flat", "--rerank=aqe,dba,k_reciprocal",
        "--output=out", code=code,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = metrics.summarize(metrics.rank_queries(points.astype(np.float32), labels))
    return folder / "out", expected, done


def _write_store(folder, points, names, labels, weights):
    folder.mkdir()
    manifest = store.begin(folder, {"checkpoint_sha256": weights})
    empty = np.full(len(names), "")
    store.append(folder, manifest, store.Embedded(points, names, labels.astype(str), empty), 1)
    store.finish(folder, manifest)
    return str(folder)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Stores {'old_queries', ...} of a model, and of a better one half compatible with it."""
    folder, random = tmp_path_factory.mktemp("models"), np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 4)
    truth = random.normal(size=(30, 8))
    turn = np.linalg.qr(random.normal(size=(8, 8)))[0]
    names = {kind: np.array([f"{kind}<{n}>" for n in range(120)]) for kind in "qc"}
    stores, noise = {}, {"old": 1.4, "new": 0.3}
    for model, amount in noise.items():
        for kind, name in (("q", "queries"), ("c", "catalogue")):
            points = truth[labels] + amount * random.normal(size=(120, 8))
            if model == "new":
                points = points + 0.2 * points @ turn
            place = folder / f"{model}_{name}"
            stores[place.name] = _write_store(
                place, points.astype(np.float32), names[kind], labels, model
            )
    return stores


@pytest.fixture
def shop(tmp_path):
    """A folder with a store of twelve images, one of whose files is gone, and its index."""
    points = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)
    ids = np.array([f"<b>{n}" for n in range(12)])
    paths = np.array([str(tmp_path / f"{n}.png") for n in range(12)])
    for n, path in enumerate(paths[:-1]):
        Image.new("RGB", (60, 40), (20 * n, 0, 255 - 20 * n)).save(path)
    everything = store.Embedded(points, ids, ids, np.full(12, "shoes & more"), paths=paths)
    (tmp_path / "s").mkdir()
    manifest = store.begin(tmp_path / "s", {"checkpoint_sha256": "w"})
    store.append(tmp_path / "s", manifest, everything, 1)
    store.finish(tmp_path / "s", manifest)
    index.build(tmp_path / "s", tmp_path / "i", "Flat")
    return tmp_path


@pytest.fixture(scope="session")
def mean_color(tmp_path_factory):
    """A SavedModel of another origin: float images of 8 x 16 to their mean color, times 1, 2, 3."""
    import tensorflow as tf

    class Mean(tf.Module):
        def __init__(self):
            self.weight = tf.Variable([1.0, 2.0, 3.0])

        @tf.function(input_signature=[tf.TensorSpec([None, 8, 16, 3], tf.float32)])
        def serve(self, picture):
            return {"embeddings": tf.reduce_mean(picture, [1, 2]) * self.weight}

    module = Mean()
    folder = str(tmp_path_factory.mktemp("mean"))
    tf.saved_model.save(module, folder, signatures=module.serve)
    return folder


COLORS = {"red": (220, 10, 10), "green": (10, 220, 10), "blue": (10, 10, 220), "gray": (99,) * 3}


@pytest.fixture(scope="session")
def colors(tmp_path_factory, mean_color):
    """A folder with images of four products and shop.csv of them; beside it, their index `i`."""
    from stores import run_program

    from retrieval import build

    folder = tmp_path_factory.mktemp("colors") / "photos"
    folder.mkdir()
    lines = ["path,label,category,role"]
    for name, color in COLORS.items():
        for number, role in enumerate(("query", "catalogue", "catalogue")):
            shade = tuple(max(0, value - 9 * number) for value in color)
            path = f"{name}-{number}.{'jpg' if number == 0 else 'png'}"
            Image.new("RGB", (40, 20), shade).save(folder / path, quality=95)
            lines.append(f"{path},{name},{'neutral' if name == 'gray' else 'bright'},{role}")
    (folder / "shop.csv").write_text("\n".join(lines) + "\n")
    line = [f"--saved_model={mean_color}", "--input_range=0,255", f"--manifest={folder}/shop.csv"]
    assert run_program(build, *line, f"--output={folder.parent}/i") == 0
    return folder


@pytest.fixture(scope="session")
def worded(tmp_path_factory):
    """A folder with images of three colors and their index `i`, whose model takes words, too.

    The model of `plain` takes none, that of `headed` says why not.
    """
    import keras
    import tensorflow as tf

    from models.backbones import texts
    from retrieval.embeddings.embedder import Embedder

    folder = tmp_path_factory.mktemp("worded")
    names = [name for name in COLORS if name != "gray"]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", "?", *names]
    rows = np.zeros((len(vocabulary), 3), np.float32)
    rows[3:] = [COLORS[name] for name in names]
    words = {
        "type": "WordLevel",
        "vocab": {w: n for n, w in enumerate(vocabulary)},
        "unk_token": "?",
    }
    tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"model": words}))

    def tower():
        ids = keras.Input((None,), dtype="int32")
        table = keras.layers.Embedding(len(rows), 3)
        model = keras.Model(ids, keras.layers.GlobalAveragePooling1D()(table(ids)))
        table.set_weights([rows])
        return model

    def build(session):
        images = tf.compat.v1.placeholder(tf.uint8, [None, 8, 8, 3], "image")
        means = tf.reduce_mean(tf.cast(images, tf.float32), [1, 2])
        return {"image": images}, tf.nn.l2_normalize(means, axis=1)

    source = {"checkpoint_sha256": "w"}
    with Embedder.of_graph(build, size=(8, 8), channels=3, source=source, threads=1) as made:
        made.texts = lambda: texts.Tower(str(folder), "clip", None, 6, tower)
        for name in names:
            Image.new("RGB", (16, 16), COLORS[name]).save(folder / f"{name}.png")
        paths = np.array([str(folder / f"{name}.png") for name in names])
        ids, empty = np.array(names), np.full(len(names), "")
        found = store.Embedded(made.embed(list(paths)), ids, ids, empty, paths=paths)
        (folder / "s").mkdir()
        manifest = store.begin(folder / "s", source)
        store.append(folder / "s", manifest, found, 1)
        store.finish(folder / "s", manifest)
        index.build(folder / "s", folder / "i", "Flat", save_model=made.save)

    def without(reason, place):
        """Saves the model as if it had no text tower."""
        source = folder / "i/versions/000001/model"
        shutil.copytree(source, place, ignore=shutil.ignore_patterns("text"))
        note = pathlib.Path(place) / "assets.extra/prototrain.json"
        note.write_text(json.dumps(json.loads(note.read_text()) | {"no_texts": reason}))

    for name, reason in (("plain", ""), ("headed", "the head was trained on images")):
        save = functools.partial(without, reason)
        index.build(folder / "s", folder / name, "Flat", save_model=save)
    return folder
