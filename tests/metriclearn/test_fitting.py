"""What `model.fit` takes beside a loss: live recall, and the batches of a sampler."""

import pathlib

import keras
import numpy as np
import pytest
import reference
import tensorflow as tf

import metriclearn
from metriclearn.fitting import RecallAtK, batches
from metriclearn.keras import Loss

pytestmark = pytest.mark.numeric
LABELS = np.arange(16) % 4
INPUTS = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)


def network():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])


@pytest.mark.parametrize("alone", [True, False])
def test_recall_counts_as_sorting_does(alone):
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(20, 3))  # each shown several times, so that ties abound
    queries = vectors[rng.integers(0, 20, 60)]
    items = queries if alone else vectors[rng.integers(0, 20, 50)]
    labels = rng.integers(0, 12, 60)
    item_labels = labels if alone else rng.integers(3, 15, 50)
    scores = [[1 - reference.distance("cosine", q, item) for item in items] for q in queries]
    wanted = []
    for i, row in enumerate(np.array(scores)):
        order = [j for j in np.argsort(-row, kind="stable") if not (alone and i == j)]
        ranks = [1 + r for r, j in enumerate(order) if item_labels[j] == labels[i]]
        wanted += ranks[:1]
    callback = RecallAtK(
        (queries, labels),
        None if alone else (items, item_labels),
        ks=(1, 3),
        embed=lambda inputs: inputs,
    )
    logs = {}
    callback.on_epoch_end(0, logs)
    wanted = np.array(wanted)
    assert logs["val_recall@1"] == np.mean(wanted <= 1)
    assert logs["val_recall@3"] == np.mean(wanted <= 3)
    assert logs["val_mrr"] == pytest.approx(np.mean(1 / wanted))


def test_recall_is_there_for_other_callbacks(tmp_path):
    data = tf.data.Dataset.from_tensor_slices((INPUTS, LABELS)).batch(5)
    name = tmp_path / "{val_recall@1:.2f}.keras"
    model = network()
    model.compile("sgd", Loss("triplet"))
    history = model.fit(
        INPUTS,
        LABELS,
        batch_size=16,
        verbose=0,
        epochs=6,
        callbacks=[
            RecallAtK(data, (INPUTS[4:], LABELS[4:]), every=2),
            keras.callbacks.ModelCheckpoint(name, "val_recall@1", mode="max", save_best_only=True),
            keras.callbacks.EarlyStopping("val_recall@1", mode="max", patience=2),
        ],
    ).history
    assert len(history["val_recall@1"]) < 6  # each query is in the catalogue: it cannot rise
    assert pathlib.Path(str(name).format(**{k: v[0] for k, v in history.items()})).exists()


def test_batches_of_a_sampler_fit():
    sample = metriclearn.pk_sampler(LABELS, products=4, images=2)
    rows = [sample(step).numpy() for step in range(3)]
    inputs = {"image": INPUTS, "row": np.arange(16)}
    given = list(batches(sample, inputs, LABELS, start=1, steps=2))
    for (got, labels), wanted in zip(given, rows[1:], strict=True):
        np.testing.assert_array_equal(got["row"], wanted)
        np.testing.assert_array_equal(labels, LABELS[wanted])
    model = network()
    model.compile("sgd", metriclearn.triplet_loss)
    model.fit(batches(sample, INPUTS, LABELS), steps_per_epoch=3, verbose=0)
