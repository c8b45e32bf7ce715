"""A store that several processes fill: it equals that of one, under races, kills and reruns."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import crash
import numpy as np
import pytest
from stores import NASTY

from retrieval.embeddings import parts, places, store
from trainer import files

ROOT = pathlib.Path(__file__).parents[3]
PLAN = parts.Plan({"checkpoint_sha256": "w", "checkpoint": "/here"}, "float32", 3, 50, 4, 2)


def rows(batches, plan=PLAN):
    """Yields what a model would make of some batches; a row of every fifth image is skipped."""
    for batch in batches:
        numbers = np.arange(batch * plan.batch_size, min((batch + 1) * plan.batch_size, plan.rows))
        kept = numbers[numbers % 5 > 0]
        names = np.array([f"i{n}{NASTY}" for n in kept], str)
        yield (
            store.Embedded(np.sin(kept[:, None] + np.arange(3.0)), names, names, names),
            [f"skipped {n}" for n in numbers[numbers % 5 == 0]],
        )


def whole(folder):
    """The same rows by one process."""
    store.fill(str(folder), PLAN.source, lambda done: rows(range(done, 13)), shard_rows=9)
    return store.read(folder)


def assert_equal(folder, expected):
    found = store.read(folder)
    for field in ("embeddings", "ids", "products", "categories"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
    shards = store.manifest_of(folder)["shards"]
    assert [n for s in shards for n in s["skipped"]] == [f"skipped {n}" for n in range(0, 50, 5)]


def names(folder):
    """The files of a store without marks; a file of data is called by its shard and piece."""
    found = {str(p.relative_to(folder)) for p in folder.rglob("*")} - {files.MARK, files.LOCK}
    return {name[:11] if "-" in name else name for name in found}, len(found)


PROCESS = """
import random, sys, time
sys.path.insert(0, {tests!r})
import test_parts
from retrieval.embeddings import parts
folder, seed = sys.argv[1], int(sys.argv[2])
random.seed(seed)
def slowly(batches):
    for batch in test_parts.rows(batches):
        time.sleep(random.random() * 0.03)
        yield batch
print("ready", flush=True)
sys.stdin.readline()
for shard in random.sample(range(3), 3):
    parts.fill(folder, test_parts.PLAN, shard, slowly)
"""


def test_three_processes_race_for_every_shard_and_one_is_killed(tmp_path):
    """All three try all shards at once; the result is that of one process, and nothing else."""
    code = PROCESS.format(tests=os.path.dirname(__file__))
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests/retrieval", ROOT / "tests/trainer")))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "s"), str(seed)],
            env=os.environ | {"PYTHONPATH": path}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for seed in range(3)
    ]  # fmt: skip
    for process in started:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    while not (tmp_path / "s" / "parts").is_dir() or not os.listdir(tmp_path / "s" / "parts"):
        time.sleep(0.01)
    started[0].send_signal(signal.SIGKILL)
    for process in started:
        _, said = process.communicate(timeout=60)
        assert process.returncode == (-9 if process is started[0] else 0), said
        assert not said
    parts.finish(str(tmp_path / "s"))
    assert_equal(tmp_path / "s", whole(tmp_path / "w"))
    assert names(tmp_path / "s")[1] == 1 + 2 * len(store.manifest_of(tmp_path / "s")["shards"])


def test_a_kill_between_any_two_steps_loses_at_most_a_piece(tmp_path, monkeypatch):
    expected, folder = whole(tmp_path / "w"), tmp_path / "s"
    plan = dataclasses.replace(PLAN, of=2, piece=9)

    def run():
        for shard in range(2):
            parts.fill(str(folder), plan, shard, rows)
        parts.finish(str(folder))

    run()
    clean = names(folder)
    folder.rename(tmp_path / "clean")
    for count in crash.points(run, monkeypatch):
        if folder.exists() and (folder / "manifest.json").exists():
            assert_equal(folder, expected)
        run()
        assert_equal(folder, expected)
        assert names(folder) == clean
        folder.rename(tmp_path / f"{count}")


def test_only_one_of_two_tries_is_kept(tmp_path):
    """The loser, which may even come after the end, removes what it wrote."""
    folder = tmp_path / "s"
    for shard in (1, 2):
        parts.fill(str(folder), PLAN, shard, rows)

    def overtaken(batches):
        found = rows(batches)
        yield next(found)
        if not (folder / "manifest.json").exists():
            parts.fill(str(folder), PLAN, 0, rows)
            parts.finish(str(folder))
        yield from found

    assert parts.fill(str(folder), PLAN, 0, overtaken) == 0
    assert_equal(folder, whole(tmp_path / "w"))
    assert names(folder)[1] == 1 + 2 * len(store.manifest_of(folder)["shards"])
    assert parts.fill(str(folder), PLAN, 0, rows) == 0  # again, after the end
    assert parts.finish(str(folder)) == store.manifest_of(folder)


def test_what_does_not_belong_together_is_refused_and_nothing_lost(tmp_path):
    folder = str(tmp_path / "s")
    with pytest.raises(ValueError, match="holds no shards: run embed --shard"):
        parts.finish(folder)
    parts.fill(folder, PLAN, 1, rows)
    before = names(tmp_path / "s")
    elsewhere = dataclasses.replace(PLAN, source=PLAN.source | {"checkpoint": "/mnt/there"})
    parts.begin(folder, elsewhere)  # the same weights at another path
    for change, said in (
        ({"source": PLAN.source | {"checkpoint_sha256": "v"}}, "of another checkpoint_sha256"),
        ({"source": PLAN.source | {"images_sha256": "v"}}, "of other images"),
        ({"dtype": "float16"}, "of another dtype"),
        ({"of": 2}, "being filled in 3 shards, which 2 would overlap: give --shard=i/3"),
        ({"batch_size": 8}, "another batch_size"),
        ({"piece": 1}, "another shard_rows"),
    ):
        with pytest.raises(ValueError, match=said):
            parts.fill(folder, dataclasses.replace(PLAN, **change), 0, rows)
    with pytest.raises(
        ValueError,
        match=r"2 of 3 shards missing: 0/3 \(rows 0 to 15\), 2/3 \(rows 32 to 49\); "
        "embed again with --shard=0/3",
    ):
        parts.finish(folder)
    with pytest.raises(ValueError, match="being filled in shards"):
        store.fill(folder, PLAN.source, lambda done: rows(range(done, 13)))
    with pytest.raises(ValueError, match="embed --finish"):
        store.read(folder)
    assert names(tmp_path / "s") == before
    for shard in (0, 2):
        parts.fill(folder, PLAN, shard, rows)
    with files.only_writer(folder), pytest.raises(BlockingIOError, match="is writing there"):
        parts.finish(folder)
    data = next((tmp_path / "s").glob("00001-*.npy"))
    content = data.read_bytes()
    data.write_bytes(content[:-1] + b"x")
    with pytest.raises(ValueError, match=r"is damaged: delete .*00001-0000.\.json and embed again"):
        parts.finish(folder)
    data.write_bytes(content)
    parts.finish(folder)
    assert_equal(folder, whole(tmp_path / "w"))
    with pytest.raises(store.OtherSource, match="another checkpoint_sha256"):
        parts.begin(folder, dataclasses.replace(PLAN, source={"checkpoint_sha256": "v"}))


def test_more_shards_than_batches(tmp_path):
    plan, folder = dataclasses.replace(PLAN, of=20), str(tmp_path / "s")
    for shard in range(20):
        if shard != 0:
            parts.fill(folder, plan, shard, rows)
    with pytest.raises(ValueError, match=r"shards missing: 0/20 \(no rows\)"):
        parts.finish(folder)
    parts.fill(folder, plan, 0, rows)
    parts.finish(folder)
    assert_equal(folder, whole(tmp_path / "w"))


def test_object_storage_holds_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = "memory://bucket/parts"
    threads = [
        threading.Thread(target=parts.fill, args=(folder, PLAN, shard, rows)) for shard in range(3)
    ]
    for thread in [*threads[:2]]:
        thread.start()
        thread.join()
    with pytest.raises(ValueError, match="1 of 3 shards missing: 2/3"):
        parts.finish(folder)
    threads[2].start()
    threads[2].join()
    parts.finish(folder)
    assert_equal(folder, whole(tmp_path / "w"))
    left = places.at(folder).names()
    shards = store.manifest_of(folder)["shards"]
    assert len([n for n in left if n != "parts"]) == 2 + 2 * len(shards)  # with mark and manifest
    with pytest.raises(ValueError, match="has no locks: fill it in shards"):
        store.fill(folder, PLAN.source, lambda done: rows(range(done, 13)))
