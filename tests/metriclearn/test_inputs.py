"""Labels of every legal form mean the same everywhere; every other form is refused everywhere."""

import functools
import inspect

import numpy as np
import pytest
import tensorflow as tf

import metriclearn
from metriclearn import inputs

LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 3, 0])
LABELS = np.concatenate([LABELS[:6], LABELS[:6]])  # pairs, for given_positive
ROWS = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
TRIPLETS = [0, 1], [3, 4], [1, 2]


def itself(labels):
    return metriclearn.References(labels, ROWS, np.arange(12))


def remembered(labels):
    memory = metriclearn.cross_batch_memory(20, 4)
    return metriclearn.enqueue(memory, labels, ROWS).labels


def drawn(make, **options):
    def draw(labels):
        sample = make(labels, **options)
        return [sample(step) for step in range(3)]

    return draw


# Every public function that takes labels (or categories or domains), as a function of them.
OF_TENSORS = (
    {name: functools.partial(loss, embeddings=ROWS) for name, loss in metriclearn.LOSSES.items()}
    | {
        name: functools.partial(loss, embeddings=ROWS, proxies=ROWS[:5])
        for name, loss in metriclearn.PROXY_LOSSES.items()
    }
    | {
        f"mine_{name}": functools.partial(miner, embeddings=ROWS)
        for name, miner in metriclearn.MINERS.items()
    }
    | {
        f"{name} of references": lambda labels, loss=metriclearn.LOSSES[name]: loss(
            LABELS, ROWS, references=itself(labels)
        )
        for name in metriclearn.LOSSES
        if "references" in inspect.signature(metriclearn.LOSSES[name]).parameters
    }
    | {
        "count_suspended": lambda labels: metriclearn.count_suspended(labels, ROWS, 1.0),
        "triplet_statistics": lambda labels: metriclearn.triplet_statistics(labels, ROWS, TRIPLETS),
        "enqueue": remembered,
    }
)
OF_ARRAYS = {
    "pk": drawn(metriclearn.pk_sampler, products=2, images=2),
    "balanced": drawn(metriclearn.balanced_sampler, batch_size=4),
    "hierarchical": drawn(
        metriclearn.hierarchical_sampler,
        categories=LABELS % 2,
        categories_per_batch=1,
        products=1,
        images=2,
    ),
    "pair": drawn(metriclearn.pair_sampler, domains=[0, 1] * 6, pairs=2, query=0, positive=1),
    "pk categories": lambda categories: drawn(
        metriclearn.pk_sampler,
        products=1,
        images=2,
        categories=categories,
        single_category=0.5,
    )(LABELS),
    "hierarchical categories": lambda categories: drawn(
        metriclearn.hierarchical_sampler,
        categories=categories,
        categories_per_batch=1,
        products=1,
        images=2,
    )(LABELS),
    "pair categories": lambda categories: drawn(
        metriclearn.pair_sampler,
        domains=[0, 1] * 6,
        pairs=1,
        query=0,
        positive=1,
        categories=categories,
        single_category=0.5,
    )(LABELS),
    "pair domains": lambda domains: drawn(
        metriclearn.pair_sampler, domains=domains, pairs=1, query=0, positive=0
    )(LABELS),
}
ALL = OF_TENSORS | OF_ARRAYS
SAME = {
    "column": LABELS[:, None],
    "float32": LABELS.astype(np.float32),
    "float16 column": LABELS.astype(np.float16)[:, None],
    "float64": LABELS.astype(np.float64),
    "uint8": LABELS.astype(np.uint8),
    "int64": LABELS.astype(np.int64),
    "list": LABELS.tolist(),
}
REFUSED = {
    "matrix": np.stack([LABELS, LABELS], 1),
    "row": LABELS[None],
    "cube": LABELS[:, None, None],
    "scalar": np.int64(3),
    "fractions": LABELS + 0.5,
    "NaN": np.where(LABELS == 1, np.nan, LABELS),
    "infinity": np.where(LABELS == 1, np.inf, LABELS),
    "beyond 2^24": LABELS + np.float64(2**24 + 4),
    "complex": LABELS.astype(np.complex64),
    "one short": LABELS[:-1],
}


def values(result):
    return [np.asarray(t) for t in tf.nest.flatten(result)]


@pytest.mark.parametrize("name", ALL)
def test_every_legal_form_gives_the_same(name):
    wanted = values(ALL[name](LABELS))
    for form, labels in SAME.items():
        for got, expected in zip(values(ALL[name](labels)), wanted, strict=True):
            np.testing.assert_array_equal(got, expected, err_msg=form)


@pytest.mark.parametrize("form", REFUSED)
@pytest.mark.parametrize("name", ALL)
def test_every_other_form_is_refused(name, form):
    if name in ("pk", "balanced") and form == "one short":
        pytest.skip("nothing to be shorter than")
    with pytest.raises(ValueError, match=r"must be|pass one per row"):
        ALL[name](REFUSED[form])


@pytest.mark.parametrize("name", sorted(set(ALL) - set(metriclearn.PROXY_LOSSES) - {"enqueue"}))
def test_strings_and_bools_are_classes(name):
    if "domains" in name:
        pytest.skip("compared with the option query, here an integer")
    two = LABELS % 2
    wanted = values(ALL[name](two))
    for labels in two == 1, np.array(["a", "b"])[two], np.array(["a", "b"], object)[two]:
        if "of references" in name and labels.dtype != bool:
            with pytest.raises(ValueError, match="would never be equal"):
                ALL[name](labels)
            continue
        for got, expected in zip(values(ALL[name](labels)), wanted, strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", ["triplet", "arcface", "mine_semi_hard", "contrastive"])
def test_in_a_graph_values_and_shapes_are_checked_when_it_runs(name):
    for shape in None, [None, None], [None, 1]:
        function = tf.function(
            lambda labels: OF_TENSORS[name](labels),
            input_signature=[tf.TensorSpec(shape, tf.float32)],
        )
        column = LABELS.astype(np.float32)[:, None]
        for got, wanted in zip(values(function(column)), values(ALL[name](LABELS)), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-6)
        with pytest.raises(tf.errors.InvalidArgumentError, match="whole numbers up to 16777216"):
            function(column + 0.5)
        if shape != [None, 1]:
            with pytest.raises(tf.errors.InvalidArgumentError, match="vector"):
                function(np.tile(column, [1, 2]))


def test_a_constant_in_a_graph_is_checked_at_once():
    with tf.Graph().as_default(), pytest.raises(ValueError, match="whole numbers"):
        inputs.label_tensor(tf.constant([0.5, 1.0]))


def test_half_precision_labels_stop_where_they_merge():
    assert inputs.label_tensor(tf.constant([2048.0], tf.float16)).numpy() == [2048]
    with pytest.raises(ValueError, match="up to 2048"):
        inputs.label_tensor(tf.constant([2050.0], tf.float16))
    with pytest.raises(ValueError, match="up to 2048"):
        inputs.label_array(np.array([2050.0], np.float16))
    with pytest.raises(ValueError, match="up to 256"):
        inputs.label_tensor(tf.constant([258.0], tf.bfloat16))


def test_numpy_mixtures_that_would_merge_classes_are_refused():
    mixed = np.array([np.uint64(2**60), np.int64(2**60 + 1)])  # float64, both 2^60
    assert mixed[0] == mixed[1]
    with pytest.raises(ValueError, match="whole numbers up to 16777216"):
        inputs.label_array(mixed)
    with pytest.raises(ValueError, match="mixture of objects"):
        inputs.label_array(np.array(["a", 1], object))
    exact = inputs.label_array(np.array([2**60, 2**70], object))
    assert exact.tolist() == [2**60, 2**70]


def test_lengths_that_only_the_run_knows_are_compared():
    signature = [tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, 4], tf.float32)]
    function = tf.function(metriclearn.triplet_loss, input_signature=signature)
    with pytest.raises(tf.errors.InvalidArgumentError, match="pass one of labels per row"):
        function(np.arange(13), ROWS)


@pytest.mark.parametrize("rows", [ROWS[0], ROWS[None], ROWS.astype(np.int32), [["a"]]])
def test_embeddings_must_be_a_matrix_of_floats(rows):
    with pytest.raises(ValueError, match="x must be a matrix"):
        metriclearn.pairwise_distances(rows)
    with pytest.raises(ValueError, match="embeddings must be a matrix"):
        metriclearn.triplet_loss(LABELS, rows)
