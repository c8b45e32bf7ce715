"""Checkpoints: nothing half-written, nothing restored into the wrong shape."""

import errno
import os
import resource
import subprocess
import sys
import threading

import crash
import numpy as np
import pytest
import tensorflow as tf

from trainer import checkpoints, files
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
    process.wait(60)
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


# ---------------------------------------------------------------------------- kills and odd disks


def listing(folder):
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return sorted(found - {".prototrain"})


def values(prefix):
    return tf.train.load_checkpoint(prefix).get_tensor("v").tolist()


def parts(folder, *steps):
    names = [f"model-{s}.{e}" for s in steps for e in ("data-00000-of-00001", "index")]
    return [f"{folder}{name}" for name in names]


@pytest.mark.parametrize("links", [True, False], ids=["hard_links", "no_hard_links"])
def test_a_kill_between_any_two_steps_of_a_save_leaves_old_or_new_and_no_litter(
    session, tmp_path, monkeypatch, links
):
    """Publishing, keeping the best and forgetting the oldest, killed before each change."""
    if not links:
        refused = OSError(errno.EOPNOTSUPP, "no hard links")
        monkeypatch.setattr(os, "link", lambda *names: (_ for _ in ()).throw(refused))
    monkeypatch.setattr(threading, "excepthook", lambda failure: None)
    v = variable(session, "v", [0.0])

    def writer(folder):
        return checkpoints.Writer(session, [v], str(folder), max_to_keep=2)

    def prepared(folder):
        folder.mkdir()
        first = writer(folder)
        for step, best in ((10, True), (20, False), (30, False)):
            v.load([step], session)
            first.save(step, wait=True, best=best)
        v.load([40], session)
        return first

    folder = tmp_path / "0"
    writers = [prepared(folder)]
    for count in crash.points(lambda: writers[-1].save(40, wait=True, best=True), monkeypatch):
        writers[-1]._publishing = None
        newest = checkpoints.latest(folder)
        step = checkpoints.step_of(newest)
        assert step in (30, 40) and values(newest) == [step]
        for kept in checkpoints.steps(folder / "best"):
            assert values(str(folder / "best" / f"model-{kept}")) == [kept]
        again = writer(folder)  # the next run: as the loop starts
        again.keep_best(40 if step == 40 else 10)
        best = 40 if step == 40 else 10
        assert listing(folder / "best") == parts("", best)
        v.load([50], session)
        again.save(50, wait=True, best=True)
        kept = (30, 50) if step == 30 else (40, 50)
        assert listing(folder) == sorted(["checkpoint", *parts("best/", 50), *parts("", *kept)])
        again.close(), writers[-1].close()
        folder = tmp_path / str(count + 1)
        writers.append(prepared(folder))
    assert count >= 12


def test_what_a_full_disk_leaves_of_each_step_is_repaired(session, tmp_path, monkeypatch):
    v = variable(session, "v", [1.0])
    writer = checkpoints.Writer(session, [v], str(tmp_path), max_to_keep=1)
    writer.save(1, wait=True, best=True)
    step = 1
    for name in ("replace", "link", "mkdir"):
        with monkeypatch.context() as patch:
            full = OSError(errno.ENOSPC, "No space left on device")
            patch.setattr(os, name, lambda *a, full=full, **k: (_ for _ in ()).throw(full))
            if name == "link":  # then the copy fails too
                patch.setattr(files.shutil, "copyfileobj", os.link)
            with pytest.raises((UserError, OSError), match="No space left"):
                writer.save(step + 1, wait=True, best=True)
        assert values(checkpoints.latest(tmp_path)) == [1.0]
        step += 1
    writer.save(9, wait=True, best=True)
    assert listing(tmp_path) == sorted(["checkpoint", *parts("", 9), *parts("best/", 9)])


def test_damage_is_one_line_whichever_part_is_cut(session, tmp_path):
    v = variable(session, "v", np.arange(5000, dtype=np.float32))
    checkpoints.Writer(session, [v], str(tmp_path), 1).save(1, wait=True)
    for name in parts("", 1):
        whole = (tmp_path / name).read_bytes()
        for cut in (0, 1, len(whole) // 2, len(whole) - 1):
            (tmp_path / name).write_bytes(whole[:cut])
            with pytest.raises(UserError, match="model-1 is damaged .*--fallback"):
                checkpoints.restore(session, str(tmp_path / "model-1"), [v])
        (tmp_path / name).write_bytes(bytes([*whole[:-1], whole[-1] ^ 255]))
        with pytest.raises(UserError, match="model-1 is damaged"):
            checkpoints.restore(session, str(tmp_path / "model-1"), [v])
        (tmp_path / name).write_bytes(whole)
    checkpoints.restore(session, str(tmp_path / "model-1"), [v])


def test_falling_back_sets_damaged_checkpoints_aside(session, tmp_path):
    writer = checkpoints.Writer(session, [variable(session, "v", [1.0])], str(tmp_path), 5)
    for step in (1, 2, 3):
        writer.save(step, wait=True)
    for name in (*parts("", 2)[:1], *parts("", 3)[1:]):
        (tmp_path / name).write_bytes(b"")
    found = checkpoints.fall_back(str(tmp_path))
    assert found == [str(tmp_path / "model-3"), str(tmp_path / "model-2")]
    assert checkpoints.steps(tmp_path) == [1]
    assert checkpoints.fall_back(str(tmp_path)) == []
    (tmp_path / parts("", 1)[0]).write_bytes(b"")
    with pytest.raises(UserError, match="No checkpoint in .* can be read"):
        checkpoints.fall_back(str(tmp_path))
    assert checkpoints.steps(tmp_path) == [1]


@pytest.mark.parametrize("name", ["run[1]", "a*b", "100%s", "{x}", "what?", "back\\slash"])
def test_names_are_never_patterns(session, tmp_path, name):
    v = variable(session, "v", [3.0])
    folder = tmp_path / name
    folder.mkdir()
    writer = checkpoints.Writer(session, [v], str(folder), 2)
    for step in (1, 2, 3):
        writer.save(step, wait=True, best=True)
    assert checkpoints.steps(folder) == [2, 3]
    prefix = checkpoints.find(folder)
    assert checkpoints.shapes(prefix) == {"v": [1]}
    v.load([0.0], session)
    checkpoints.restore(session, prefix, [v])
    assert session.run(v) == [3.0]
    # A checkpoint of TensorFlow's own Saver, under a name of its choice.
    other = tmp_path / f"{name}-saver"
    other.mkdir()
    v1.train.Saver([v]).save(session, str(other / "mine"))
    assert checkpoints.find(other) == str(other / "mine")
    assert checkpoints.load_matching(session, str(other / "mine"), [v])["loaded"] == ["v"]
