"""The port of a worker: whether it is free, and from which address it can be reached.

TensorFlow's server listens on all interfaces of the machine, independent of the given address, and
has no authentication. On Linux, a kernel filter restricts it.
"""

import contextlib
import ctypes
import os
import socket
import stat
import struct
import sys
import time

_ATTACH_FILTER = 26  # SO_ATTACH_FILTER of Linux

# Operations of the kernel's packet filter (linux/filter.h): load a word, compare, return.
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_PROTOCOL, _NETWORK = -0x1000, -0x100000  # offsets: the packet's protocol; its IP header
_IPV4 = 0x0800


def taken(address: str) -> bool:
    """Returns whether a program is already listening on the port of `host:port`."""
    port = int(address.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


def answers(address: str, seconds: float) -> bool:
    """Waits until a program listens at `host:port`; returns False after `seconds`."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
            return True
        except OSError:
            if time.monotonic() > end:
                return False
        time.sleep(0.1)


def free_port(host: str = "127.0.0.1") -> int:
    """Returns a port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def restrict(address: str) -> bool:
    """Restricts this process's listener on the port of `host:port` to packets to that host.

    Returns:
      Whether it is restricted: not if the host is not an IPv4 address of this machine (behind a
      proxy), and not on other systems than Linux.
    """
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        own = socket.gethostbyname(host.strip("[]"))
        with socket.socket() as probe:
            probe.bind((own, 0))  # fails for an address of another machine
        if sys.platform == "linux" and own != "0.0.0.0":
            return sum(_filter(listening, own) for listening in _listeners(int(port))) > 0
    return False


def _listeners(port):
    """Yields the sockets of this process that listen on a port."""
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the folder's descriptor is already closed
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                with socket.socket(fileno=os.dup(number)) as found:
                    listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                    if listens and found.getsockname()[1] == port:
                        yield found


def _filter(listening, own):
    """Drops packets that are not IPv4 to the address `own`; connections inherit the filter."""
    program = [
        (_LOAD, 0, 0, _PROTOCOL & 0xFFFFFFFF),
        (_EQUAL, 0, 3, _IPV4),
        (_LOAD, 0, 0, (_NETWORK + 16) & 0xFFFFFFFF),  # the destination's address
        (_EQUAL, 0, 1, struct.unpack("!I", socket.inet_aton(own))[0]),
        (_RETURN, 0, 0, 0xFFFFFFFF),
        (_RETURN, 0, 0, 0),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    pointer = struct.pack("HP", len(program), ctypes.addressof(code))
    listening.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, pointer)
    return True
