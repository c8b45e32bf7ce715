"""Damaged checkpoints restore what was saved or are refused in one line that names them."""

import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

from trainer import checkpoints

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from damage import copy, damage_one, example, numbers, read_or_refused, seeded

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


def test_damaged_checkpoints(good, tmp_path):
    with tf.Graph().as_default():
        session, variables = session_of({name: 0 * value for name, value in VALUES.items()})
        for number in numbers():
            with example("checkpoint", number):
                folder = copy(good, tmp_path / "c")
                damage_one(folder, seeded("checkpoint", number))
                session.run(v1.global_variables_initializer())

                def restored(folder=folder):
                    checkpoints.restore(session, checkpoints.find(folder), variables)
                    return session.run(variables)

                found = read_or_refused(restored, folder)
                for value, known in zip(found or (), VALUES.values(), strict=bool(found)):
                    np.testing.assert_array_equal(value, known)
                if not found:  # nothing was loaded
                    assert not any(value.any() for value in session.run(variables))
