"""A tiny model with a checkpoint: pictures in memory, one dense layer."""

import os
import pathlib
import sys
import textwrap

import numpy as np
import pytest

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

    from trainer import config as config_lib

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.py").write_text(textwrap.dedent(TINY))
    checkpoint = folder / "experiments/exp-tiny/checkpoint"
    os.makedirs(checkpoint)
    sys.path.insert(0, str(folder))
    try:
        model = config_lib.load_model("tiny")
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
def points():
    return np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32)
