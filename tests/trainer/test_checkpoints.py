"""Checkpoints: nothing half-written, nothing restored into the wrong shape."""

import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from trainer import checkpoints
from trainer.config import UserError

v1 = tf.compat.v1


@pytest.fixture
def session():
    with tf.Graph().as_default(), v1.Session() as session:
        yield session


def variable(session, name, value):
    v = v1.get_variable(name, initializer=tf.constant(value))
    session.run(v.initializer)
    return v


def test_saves_restore_and_only_the_newest_stay(session, tmp_path):
    v = variable(session, "v", [0.0, 0.0])
    writer = checkpoints.Writer(session, [v], str(tmp_path), max_to_keep=2)
    for step in (9, 10, 100):
        v.load([step, -step], session)
        writer.save(step)
    writer.wait()
    assert checkpoints.steps(tmp_path) == [10, 100]
    prefix = checkpoints.latest(tmp_path)
    assert prefix == str(tmp_path / "model-100") and checkpoints.step_of(prefix) == 100
    assert tf.train.latest_checkpoint(str(tmp_path)) == prefix
    checkpoints.restore(session, str(tmp_path / "model-10"), [v])
    np.testing.assert_array_equal(session.run(v), [10, -10])


def test_variables_that_share_their_initial_value_are_restored_each_to_its_own(session, tmp_path):
    start = tf.constant([0.0, 0.0])
    variables = [v1.get_variable(name, initializer=start) for name in "abc"]
    assert len({v.initializer.inputs[1].name for v in variables}) == 1
    for i, v in enumerate(variables):
        v.load([i, -i], session)
    writer = checkpoints.Writer(session, variables, str(tmp_path), max_to_keep=1)
    writer.save(1)
    writer.wait()
    session.run([v.initializer for v in variables])
    checkpoints.restore(session, str(tmp_path / "model-1"), variables)
    np.testing.assert_array_equal(session.run(variables), [[0, 0], [1, -1], [2, -2]])


def test_a_save_holds_the_values_of_its_moment(session, tmp_path):
    v = variable(session, "v", np.zeros(1 << 20, np.float32))
    add = v.assign_add(tf.ones_like(v))
    writer = checkpoints.Writer(session, [v], str(tmp_path), max_to_keep=20)
    for step in range(1, 11):
        session.run(add.op)
        writer.save(step)  # is written while the next updates run
    writer.wait()
    for step in range(1, 11):
        saved = tf.train.load_checkpoint(str(tmp_path / f"model-{step}")).get_tensor("v")
        np.testing.assert_array_equal(saved, step)


def test_best_is_kept_beside_the_newest(session, tmp_path):
    v = variable(session, "v", 0.0)
    writer = checkpoints.Writer(session, [v], str(tmp_path), max_to_keep=1)
    for step, best in ((1, True), (2, True), (3, False), (4, False)):
        writer.save(step, best=best)
    writer.wait()
    assert checkpoints.steps(tmp_path) == [4]
    assert checkpoints.steps(tmp_path / "best") == [2]
    checkpoints.restore(session, str(tmp_path / "best" / "model-2"), [v])


def test_restore_lists_what_does_not_fit_and_loads_nothing(session, tmp_path):
    a, b = variable(session, "a", [1.0, 2.0]), variable(session, "b", 3.0)
    checkpoints.Writer(session, [a, b], str(tmp_path), 1).save(1, wait=True)
    with tf.Graph().as_default(), v1.Session() as other:
        wide, b2, c = (
            variable(other, name, value)
            for name, value in (("a", [0.0, 0.0, 0.0]), ("b", 0.0), ("c", 0.0))
        )
        with pytest.raises(UserError) as error:
            checkpoints.restore(other, checkpoints.latest(tmp_path), [wide, b2, c])
        assert "a is [2] there and [3] here" in str(error.value)
        assert "c is missing" in str(error.value) and "--fresh" in str(error.value)
        assert other.run(b2) == 0

        report = checkpoints.load_matching(other, checkpoints.latest(tmp_path), [wide, b2, c])
        assert report == {
            "loaded": ["b"],
            "missing": ["c"],
            "mismatched": ["a"],
            "ignored": [],
        }
        assert other.run(b2) == 3
        with pytest.raises(UserError, match="no variable of .* fits"):
            checkpoints.load_matching(other, checkpoints.latest(tmp_path), [wide, c])


def test_averages_are_restored_where_the_checkpoint_has_them(session, tmp_path):
    v, w = variable(session, "v", 1.0), variable(session, "w", 2.0)
    shadow = variable(session, "v/ExponentialMovingAverage", 5.0)
    checkpoints.Writer(session, [v, w, shadow], str(tmp_path), 1).save(1, wait=True)
    for averages, expected in ((False, [1, 2]), (True, [5, 2])):
        checkpoints.restore(session, checkpoints.latest(tmp_path), [v, w], averages=averages)
        assert session.run([v, w]) == expected


def test_a_damaged_checkpoint_is_named(session, tmp_path):
    v = variable(session, "v", np.zeros(1000, np.float32))
    checkpoints.Writer(session, [v], str(tmp_path), 1).save(1, wait=True)
    (tmp_path / "model-1.index").write_bytes(b"")
    with pytest.raises(UserError, match="model-1 is damaged and cannot be read"):
        checkpoints.restore(session, checkpoints.latest(tmp_path), [v])


def test_find_takes_a_prefix_a_file_a_folder_or_an_experiment(session, tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    checkpoints.Writer(session, [variable(session, "v", 0.0)], str(folder), 1).save(7, wait=True)
    prefix = str(folder / "model-7")
    for path in (prefix, prefix + ".index", prefix + ".data-00000-of-00001", folder, tmp_path):
        assert checkpoints.find(path) == prefix
    with pytest.raises(UserError, match="No checkpoint at"):
        checkpoints.find(tmp_path / "elsewhere")


def test_what_a_killed_save_left_is_ignored_and_removed(session, tmp_path):
    v = variable(session, "v", 1.0)
    checkpoints.Writer(session, [v], str(tmp_path), 5).save(1, wait=True)
    torn = tmp_path / ".writing-2"
    torn.mkdir()
    (torn / "model-2.data-00000-of-00001").write_bytes(b"half")
    (tmp_path / "model-2.data-00000-of-00001").write_bytes(b"published, but not its index")
    assert checkpoints.latest(tmp_path).endswith("model-1")
    checkpoints.Writer(session, [v], str(tmp_path), 5)
    assert not torn.exists()


KILLED = """
import os, sys, threading
from trainer import quiet; quiet.import_tensorflow()
import numpy as np, tensorflow as tf
from trainer import checkpoints
v1 = tf.compat.v1
with tf.Graph().as_default(), v1.Session() as session:
    v = v1.get_variable("v", initializer=tf.zeros([1 << 23]))
    session.run(v.initializer)
    writer = checkpoints.Writer(session, [v], sys.argv[1], 100)
    writer.save(1, wait=True)
    print("saved", flush=True)
    for step in range(2, 1000):
        v.load(np.full(1 << 23, step, np.float32), session)
        writer.save(step)
"""


def test_kill_9_during_a_save_leaves_a_whole_checkpoint(tmp_path, session):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "saved\n"
    # Wait until a later save is seen under way, then kill without warning.
    while not any(n.startswith(".writing-") for n in os.listdir(tmp_path)):
        assert process.poll() is None
    process.kill()
    process.wait()
    prefix = checkpoints.latest(tmp_path)
    saved = tf.train.load_checkpoint(prefix).get_tensor("v")
    assert len(np.unique(saved)) == 1
    assert saved[0] == (0 if checkpoints.step_of(prefix) == 1 else checkpoints.step_of(prefix))


def test_a_full_disk_is_reported_and_keeps_the_last_checkpoint(tmp_path, session):
    v = variable(session, "v", np.zeros(1 << 16, np.float32))
    writer = checkpoints.Writer(session, [v], str(tmp_path), 5)
    writer.save(1, wait=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, hard))  # writes beyond 16 KiB fail
    try:
        with pytest.raises(UserError, match=r"Cannot write a checkpoint.*model-1\. Free space"):
            writer.save(2, wait=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.steps(tmp_path) == [1]
    assert not any(n.startswith(".writing-") for n in os.listdir(tmp_path))
    writer.save(3, wait=True)
    assert checkpoints.steps(tmp_path) == [1, 3]
