"""Damaged checkpoints restore what was saved or are refused in one line that names them."""

import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

from trainer import checkpoints
from trainer.config import UserError

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from damage import SEEDS, copy, damage_one

v1 = tf.compat.v1
VALUES = {"a": np.arange(12.0, dtype=np.float32).reshape(3, 4), "b/c": np.full(5, 7, np.float32)}


def session_of(values):
    variables = [v1.get_variable(name, initializer=value) for name, value in values.items()]
    session = v1.Session()
    session.run(v1.global_variables_initializer())
    return session, variables


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    with tf.Graph().as_default():
        session, variables = session_of(VALUES)
        checkpoints.Writer(session, variables, str(folder), 3).save(5, wait=True)
    return folder


@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_checkpoint(good, tmp_path, seed):
    folder = copy(good, tmp_path / "c")
    damage_one(folder, np.random.default_rng(seed))
    with tf.Graph().as_default():
        session, variables = session_of({name: 0 * value for name, value in VALUES.items()})
        try:
            checkpoints.restore(session, checkpoints.find(folder), variables)
        except UserError as error:
            assert str(folder) in str(error) and "\n" not in str(error), error
        else:
            for found, value in zip(session.run(variables), VALUES.values(), strict=True):
                np.testing.assert_array_equal(found, value)
