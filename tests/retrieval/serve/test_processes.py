"""Sockets and processes; what they do to connections is in test_limits.py."""

import socket
import subprocess
import sys

import pytest

from retrieval.serve import processes
from trainer.config import UserError


def test_an_address_that_cannot_be_used_is_named():
    for host in ("nowhere.invalid", "192.0.2.1", "x" * 300, ""):
        if host:
            with pytest.raises(UserError, match=r"--host=.* --port=0"):
                processes.bound(host, 0)
    with processes.bound("::1", 0) as sock:
        assert sock.family == socket.AF_INET6


def supervisor(worker):
    """A process that supervises two workers, each of which runs the code `worker`."""
    code = (
        "import sys\nfrom retrieval.serve import processes\n"
        f"processes._arguments = lambda: ['-c', {worker!r}]\n"
        "sys.exit(processes.supervise(2, processes.bound('127.0.0.1', 0), []))"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    )


def test_a_worker_that_cannot_start_ends_the_server():
    """And its exit code is the program's."""
    with supervisor("import sys; sys.exit(1)") as process:
        assert process.wait(60) == 1


def test_workers_end_with_a_supervisor_that_is_killed():
    worker = (
        "import time\nfrom retrieval.serve import processes\n"
        "processes.inherited()\nprint('serves', flush=True)\ntime.sleep(600)"
    )
    with supervisor(worker) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["serves\n"] * 2
        process.kill()
        assert process.stdout.read() == ""  # it ends with the last process that holds it


def test_answers_on_a_kept_connection_are_sent_at_once():
    with processes.bound("127.0.0.1", 0) as sock:
        sock.listen()
        with socket.create_connection(sock.getsockname()), sock.accept()[0] as connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
