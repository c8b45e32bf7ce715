"""Where processes run, and that they end with what started them."""

import os
import pathlib
import select
import subprocess
import sys
import time

import pytest

from trainer import engines
from trainer.config import UserError


def test_jobs_share_out_the_visible_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,5")
    assert [engines.gpus_of(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == ["0,5", "2"]
    assert engines.gpus_of(0, 1) == {} == engines.gpus_of(0, 4)


def test_a_process_ends_with_its_parent(tmp_path):
    child = [
        sys.executable,
        "-c",
        f"open({str(tmp_path / 'up')!r}, 'w'); import time; time.sleep(600)",
    ]
    parent = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import subprocess, sys; from trainer import engines\n"
            f"child = subprocess.Popen(engines.bound({child!r}, 9)); print(child.pid, flush=True)\n"
            "child.wait()",
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parent.parent.parent,
    )
    pid = int(parent.stdout.readline())
    ended = os.pidfd_open(pid)
    while not (tmp_path / "up").exists():
        time.sleep(0.01)
    parent.kill()
    assert select.select([ended], [], [], 120)[0], "the child outlives its parent"
    parent.wait(), parent.stdout.close(), os.close(ended)


def test_ray_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(UserError, match=r"pip install 'prototrain\[distributed\]'"),
        engines.on_ray(1),
    ):
        pass
