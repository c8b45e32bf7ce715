"""A worker's port: whether it is taken, and who may connect."""

import os
import socket
import sys

import pytest

from trainer import listener


@pytest.fixture
def everywhere():
    """Listens on all interfaces, as TensorFlow's server does; returns the port."""
    with socket.socket(socket.AF_INET6) as listening:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.bind(("::", 0))
        listening.listen()
        yield listening.getsockname()[1]


def reachable(host, port):
    try:
        socket.create_connection((host, port), timeout=0.3).close()
    except OSError:
        return False
    return True


def test_a_port_that_is_taken_or_free(everywhere):
    assert listener.taken(f"anything:{everywhere}") and listener.answers(f"[::1]:{everywhere}", 0)
    free = listener.free_port()
    assert not listener.taken(f"127.0.0.1:{free}")
    assert not listener.answers(f"127.0.0.1:{free}", 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's filter is Linux's")
def test_only_the_named_interface_answers(everywhere):
    others = ("127.0.0.2", "::1")
    assert all(reachable(host, everywhere) for host in ("127.0.0.1", *others))
    assert not listener.restrict(f"192.0.2.1:{everywhere}")  # not an address of this machine
    assert reachable("127.0.0.2", everywhere)
    opened = os.listdir("/proc/self/fd")
    assert listener.restrict(f"localhost:{everywhere}")
    assert os.listdir("/proc/self/fd") == opened
    assert reachable("127.0.0.1", everywhere)
    assert not any(reachable(host, everywhere) for host in others)
