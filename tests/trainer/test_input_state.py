"""A user's own iterator is resumed where it was, or named if it cannot be."""

import os

import numpy as np
import pytest
import tensorflow as tf
import toy
from runs import assert_equal_runs

from trainer import input_state, meters
from trainer.config import UserError


def own_pipeline(stateful=False):
    """Datasets without a start_step: shuffled, repeated, decoded in parallel."""

    def batch(number):
        values = toy._batch(number)
        if stateful:
            values["x"] += tf.random.normal(values["x"].shape, seed=3)
        return values

    data = tf.data.Dataset.range(50).shuffle(20, seed=1).repeat()
    return {"trn": data.map(batch, num_parallel_calls=2)}


def test_a_users_own_iterator_is_resumed_where_it_was(train, monkeypatch):
    monkeypatch.setattr(toy, "datasets", lambda: own_pipeline())
    whole = train("whole")
    # A name that would be a pattern for a shell or for TensorFlow.
    halves = train("run[1]*%s{x}?", keys={"trainer.checkpoint_save_interval": 10})
    for name in os.listdir(f"{halves}/checkpoint"):
        if "-20." in name:
            os.remove(f"{halves}/checkpoint/{name}")
    train("run[1]*%s{x}?", keys={"trainer.num_towers": 1})
    assert_equal_runs(whole, halves)


def test_state_that_cannot_be_saved_is_said_and_never_repeated(train, monkeypatch, capsys):
    monkeypatch.setattr(toy, "datasets", lambda: own_pipeline(stateful=True))
    train(keys={"model.num_steps": 5})
    said = capsys.readouterr().out
    assert "cannot be saved (RandomStandardNormal)" in said and "start_step" in said
    folder = train(keys={"model.num_steps": 10})
    losses = [line["loss"] for line in meters.read_metrics(folder)]
    assert len(losses) == 10 and not np.allclose(losses[:5], losses[5:], rtol=0.01)


def test_changed_data_is_refused(train, monkeypatch):
    train()
    batch = toy._batch
    monkeypatch.setattr(toy, "_batch", lambda n: {**batch(n), "extra": tf.zeros([16])})
    with pytest.raises(UserError, match="other shapes or types.*--allow_config_change"):
        train(keys={"model.num_steps": 30})
    train(allow_config_change=True)


def test_hidden_state_is_found_inside_functions():
    with tf.Graph().as_default():
        assert input_state.hidden_state(tf.data.Dataset.range(3).map(lambda x: x + 1)) == []
        noisy = tf.data.Dataset.range(3).map(lambda x: tf.random.uniform([]))
        assert input_state.hidden_state(noisy) == ["RandomUniform"]
        python = tf.data.Dataset.range(3).map(lambda x: tf.numpy_function(abs, [x], tf.int64))
        assert input_state.hidden_state(python) == ["PyFunc"]
