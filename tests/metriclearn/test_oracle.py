"""Against vectors that pytorch-metric-learning computed once; make_oracle.py says how."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

import metriclearn
from metriclearn.losses import LOSSES, PROXY_LOSSES

pytestmark = pytest.mark.numeric
ORACLE = json.loads(pathlib.Path(__file__).with_name("oracle.json").read_text())
LABELS, ROWS = np.array(ORACLE["labels"]), np.array(ORACLE["embeddings"])
# Of a pair and its reverse, which are equally hard, these may return either.
SYMMETRIC = ("hdc", "uniform_histogram")


def named(vector):
    return f"{vector.get('loss') or vector.get('miner')} {vector['options']}"


@pytest.mark.parametrize("vector", ORACLE["vectors"], ids=named)
def test_value_and_gradient(vector):
    x = tf.constant(ROWS)
    name, options = vector["loss"], vector["options"]
    with tf.GradientTape() as tape:
        tape.watch(x)
        if name in PROXY_LOSSES:
            several = name in ("soft_triple", "sub_center_arcface")
            proxies = np.array(ORACLE["centers" if several else "proxies"])
            value = PROXY_LOSSES[name](LABELS, x, proxies, **options)
        elif name == "weighted_sum":
            value = metriclearn.weighted_sum(*options["terms"])(LABELS, x)
        else:
            value = LOSSES[name](LABELS, x, **options)
    np.testing.assert_allclose(value, vector["value"], rtol=1e-6)
    gradient = tf.convert_to_tensor(tape.gradient(value, x))
    np.testing.assert_allclose(gradient, vector["gradient"], atol=1e-6)


@pytest.mark.parametrize("vector", ORACLE["mined"], ids=named)
def test_mined_rows(vector):
    name = vector["miner"]
    got = [np.array(rows) for rows in metriclearn.MINERS[name](LABELS, ROWS, **vector["options"])]
    wanted = [np.array(rows) for rows in vector["rows"]]
    size = 2 if len(wanted) == 4 else 3  # pairs of both kinds, or triplets
    for at in range(0, len(wanted), size):
        one, other = (np.stack(rows[at : at + size], axis=1) for rows in (got, wanted))
        if name in SYMMETRIC:
            one, other = np.sort(one, axis=1), np.sort(other, axis=1)
        assert sorted(one.tolist()) == sorted(other.tolist())
        assert len(one)


def test_every_loss_and_miner_of_the_peer_is_compared():
    """All but those that the peer defines otherwise or lacks, and those compared in a loss."""
    other_losses = {"margin", "n_pairs", "recall_at_k", "smooth_ap", "proxy_nca"}
    other_losses |= {"barlow_twins", "simsiam"}
    compared = {vector["loss"] for vector in ORACLE["vectors"]} - {"weighted_sum"}
    assert compared == {*LOSSES, *PROXY_LOSSES} - other_losses
    other_miners = {"distance_weighted", "given_positive", "top_k_hard", "semi_hard"}
    in_losses = {"batch_all", "batch_hard", "easy_positive"}
    compared = {vector["miner"] for vector in ORACLE["mined"]}
    assert compared == {*metriclearn.MINERS} - other_miners - in_losses
