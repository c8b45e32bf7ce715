"""The socket, the connections, and the processes of a server."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from trainer.config import UserError

CONNECTIONS = 1000  # open ones per process; further ones are closed at once
HEADERS = 5  # seconds within which a request's headers, and the next request, must arrive
HEADER_BYTES = 1 << 16  # of a request that is not complete, also after a body
FDS = "PROTOTRAIN_SERVE_FDS"  # tells a worker its socket, and its supervisor's pipe


class Connection(HttpToolsProtocol):
    """A connection whose headers must arrive in time and be short: uvicorn itself has no limits."""

    _late = None  # the timer
    _heading = False  # whether a request has begun whose headers are not complete
    _size = 0  # bytes since the headers were complete, or since a piece of a body

    def connection_made(self, transport):
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        self._start()

    def data_received(self, data):
        self._size += len(data)
        super().data_received(data)
        if self._size > HEADER_BYTES:
            self.transport.abort()
        if self._late is None and self._waiting:
            self._start()

    def on_message_begin(self):
        super().on_message_begin()
        self._heading = True

    def on_headers_complete(self):
        super().on_headers_complete()
        self._heading, self._size = False, 0
        self._stop()

    def on_body(self, body):
        super().on_body(body)
        self._size = 0

    @property
    def _waiting(self):
        return self._heading or self.cycle is None or self.cycle.response_complete

    def _start(self):
        self._late = self.loop.call_later(HEADERS, self._close_if_waiting)

    def _stop(self):
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close_if_waiting(self):
        self._late = None
        if self._waiting:
            self.transport.abort()

    def connection_lost(self, exc):
        super().connection_lost(exc)
        self._stop()


def bound(host: str, port: int) -> socket.socket:
    """Returns a bound socket: before anything is loaded, so that a taken port is told at once.

    Raises:
      UserError: the address cannot be used.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it. Without it a kept connection gets each answer 40 ms late: the
        # body waits until the client acknowledges the header.
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.bind(address)
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host={host} --port={port}: {reason}") from None
    return made


def server(app, timeout: float) -> uvicorn.Server:
    """Returns a server of an application that drains for at most `timeout` seconds."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="on",
            log_level="info",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=HEADERS,
            timeout_graceful_shutdown=max(1, round(timeout)),
        )
    )


def serve(app, sock: socket.socket, timeout: float) -> None:
    """Serves until SIGINT or SIGTERM, then answers what was begun and returns."""
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them again at its end
        signal.signal(number, lambda *_: None)
    server(app, timeout).run(sockets=[sock])


def inherited() -> socket.socket | None:
    """The socket of a worker; None in a process that is not one.

    A worker drains and ends if its supervisor dies, also by SIGKILL.
    """
    numbers = os.environ.get(FDS)
    if numbers is None:
        return None
    sock, pipe = map(int, numbers.split(","))
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    return socket.socket(fileno=sock)


def _end_with(pipe):
    os.read(pipe, 1)  # until the other end is closed: nobody writes
    os.kill(os.getpid(), signal.SIGTERM)


def supervise(count: int, sock: socket.socket, gpus: list[str]) -> int:
    """Runs `count` copies of this program on one socket until a signal ends them.

    A worker that dies is started again, unless it did so at once. SIGHUP goes to all.

    Args:
      count: number of workers.
      sock: the bound socket.
      gpus: names of the GPUs, dealt to the workers in turn.

    Returns:
      The exit code.
    """
    command = [sys.executable, *_arguments()]
    ending, hangups = [], []
    signal.signal(signal.SIGHUP, lambda *_: hangups.append(1))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.append(1))
    # The kernel gives connections to whichever worker accepts first.
    alive, _ = os.pipe()  # the other end closes when this process ends
    with tempfile.TemporaryDirectory(prefix="prototrain-metrics-") as metrics:
        fds = (sock.fileno(), alive)
        shared = os.environ | {
            FDS: ",".join(map(str, fds)),
            "PROMETHEUS_MULTIPROC_DIR": metrics,
        }

        def start(place):
            own = {"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else {}
            # A group of its own: Ctrl-C reaches it through this process only.
            return time.monotonic(), subprocess.Popen(
                command, env=shared | own, pass_fds=fds, start_new_session=True
            )

        workers = [start(place) for place in range(count)]
        code = 0
        while not ending:
            time.sleep(0.1)
            hangup = bool(hangups)
            hangups.clear()
            for place, (since, worker) in enumerate(workers):
                if hangup:
                    worker.send_signal(signal.SIGHUP)
                if worker.poll() is not None:
                    if time.monotonic() - since < 30 or worker.returncode == 1:
                        code = worker.returncode or 1  # it would only die again
                        ending.append(1)
                        break
                    print(f"worker {place} ended ({worker.returncode}): restarted", file=sys.stderr)
                    workers[place] = start(place)
        for _, worker in workers:
            if worker.poll() is None:
                worker.terminate()
        for _, worker in workers:
            worker.wait()
        return code


def _arguments():
    """How this program was started, as arguments of Python."""
    return ["-m", "retrieval.serve.main", *sys.argv[1:]]
