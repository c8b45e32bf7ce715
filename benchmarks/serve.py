"""The search server under load: latency, throughput and goodput beside the bare model, in one run.

    python -m benchmarks.serve [--items=100000] [--seconds=10] [--photos=FOLDER]

Builds an index of random items of 128 dimensions with EfficientNet-Lite0 at 224 px (or takes
--index=INDEX), starts `prototrain serve` on it on loopback, and compares it with the same embedder
and the same search without a server. The figures are ratios of measurements that alternate, since
another program on the machine slows both; processor time tells what a query costs in any case. The
clients share the cores with the server. Every phase is bounded by --seconds.
"""

import argparse
import collections
import concurrent.futures as futures
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import psutil

from benchmarks.bare_search import Bare, build, photos

MIB = 2**20
BOUNDARY = "prototrain-benchmark"
VERSION = re.compile(rb'"version":\s*(\d+)')
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@contextlib.contextmanager
def server(index, *flags):
    """Yields (port, process, seconds from start to ready) of a server of its own."""
    command = [sys.executable, "-m", "retrieval.serve.main", f"--index={index}", "--port=0"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, *flags], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    try:
        line = next((line for line in process.stderr if "http://" in line), "")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        port = int(line.split("http://127.0.0.1:")[1].split("/")[0])
        while True:
            with contextlib.suppress(OSError), Caller(port) as caller:
                if caller.ask(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 200:
                    break
            time.sleep(0.02)
        yield port, process, time.perf_counter() - start
    finally:
        process.terminate()
        process.wait()


def processes(process):
    """A server's process and its workers."""
    main = psutil.Process(process.pid)
    return [main, *main.children(recursive=True)]


def cpu_of(process):
    """Seconds of processor time that a server has used, all its threads together."""
    times = [one.cpu_times() for one in processes(process)]
    return sum(one.user + one.system for one in times)


def memory_of(process):
    """MiB of a server: its own, and pages of files, which it shares with all who use them."""
    found = [one.memory_info() for one in processes(process)]
    return {
        "private": round(sum(one.rss - one.shared for one in found) / MIB),
        "of_files": round(sum(one.shared for one in found) / MIB),
        "all": round(sum(one.rss for one in found) / MIB),
    }


class Caller:
    """A connection that sends requests made before: clients share the cores with the server."""

    LENGTH = re.compile(rb"content-length: (\d+)", re.I)
    RETRY = re.compile(rb"retry-after: (\d+)", re.I)

    def __init__(self, port):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request):
        """(status, bytes of the answer, seconds that it asks to wait) of a request."""
        self._socket.sendall(request)
        got = b""
        while b"\r\n\r\n" not in got:
            got += self._received()
        head, _, body = got.partition(b"\r\n\r\n")
        length, wait = int(self.LENGTH.search(head)[1]), self.RETRY.search(head)
        while len(body) < length:
            body += self._received()
        return int(head[9:12]), body, int(wait[1]) if wait else 0

    def _received(self):
        got = self._socket.recv(1 << 16)
        if not got:
            raise ConnectionError("the server closed the connection")
        return got

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()


def search_for(photo):
    """The bytes of a search by a photo."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    body = head.encode() + photo + f"\r\n--{BOUNDARY}--\r\n".encode()
    lines = f"""POST /v1/search HTTP/1.1
Host: localhost
Content-Type: multipart/form-data; boundary={BOUNDARY}
Content-Length: {len(body)}

"""
    return lines.replace("\n", "\r\n").encode() + body


def load(port, requests, clients, seconds):
    """Clients that ask without a pause, and wait as a 503 says.

    Returns:
      [(status, time when it was asked, seconds until the answer, version of the index)].
    """
    end = time.perf_counter() + seconds

    def client(n):
        turn, mine = n, []
        with Caller(port) as caller:
            while (start := time.perf_counter()) < end:
                status, body, wait = caller.ask(requests[turn % len(requests)])
                version = VERSION.search(body)
                took = time.perf_counter() - start
                mine.append((status, start, took, int(version[1]) if version else 0))
                turn += 1
                time.sleep(min(wait, max(0.0, end - time.perf_counter())))
        return mine

    with futures.ThreadPoolExecutor(clients) as pool:
        return [one for mine in pool.map(client, range(clients)) for one in mine]


def summary(found, seconds):
    good = sorted(took for status, _, took, _ in found if status == 200)
    refused = sorted(took for status, _, took, _ in found if status == 503)
    return {
        "per_second": round(len(good) / seconds, 1),
        "p50_ms": round(1e3 * statistics.median(good), 1) if good else None,
        "p99_ms": round(1e3 * good[int(0.99 * len(good))], 1) if good else None,
        "refused": len(refused),
        "refused_p99_ms": round(1e3 * refused[int(0.99 * len(refused))], 1) if refused else None,
        "other_statuses": sorted({status for status, *_ in found} - {200, 503}),
    }


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--index", default="")
    arguments.add_argument("--items", type=int, default=100_000)
    arguments.add_argument("--seconds", type=float, default=10)
    arguments.add_argument("--overload_seconds", type=float, default=30)
    arguments.add_argument("--photos", default="")
    arguments.add_argument("--flags", nargs="*", default=[], help="of prototrain serve")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-serve-") as folder:
        print(json.dumps(measure(options, folder), indent=1))


def measure(options, folder):
    from retrieval.catalogue import index as index_lib
    from retrieval.catalogue.opened import Catalogue

    given = photos(options.photos)
    requests = [search_for(photo) for photo in given]
    index = os.path.join(folder, "index")
    if options.index:
        shutil.copytree(options.index, index)  # it gets a new version below
    else:
        build(folder, options.items)
    with (
        Catalogue.open(index) as catalogue,
        Bare.process(index, 0, given) as bare,
        Bare.process(index, 1, given) as one_thread,
        server(index, *options.flags) as (port, process, ready),
    ):
        beside = {"bare": bare, "bare_one_thread": one_thread}
        results = {
            "items": catalogue.manifest["count"],
            "dimensions": catalogue.manifest["dimensions"],
            "one_client": one_client(port, process, beside, requests, 2 * options.seconds),
            "eight_clients": eight_clients(port, process, beside, requests, options.seconds),
        }
        peak = max(
            results["eight_clients"]["per_second"],
            summary(load(port, requests, 32, options.seconds), options.seconds)["per_second"],
        )
        seconds = options.overload_seconds
        flood = summary(load(port, requests, 100, seconds), seconds)
        results["hundred_clients"] = flood | {
            "peak_per_second": peak,
            "goodput_of_peak": round(flood["per_second"] / peak, 3),
        }
        results["start_to_ready_s"] = round(ready, 2)
        results["memory_mib"] = memory_of(process) | {"model_and_index": round(_size(index) / MIB)}
        gone = catalogue.items["id"][0].as_py()
        results["reload"] = reload(port, requests, lambda: index_lib.remove([gone], index))
    return results


def one_client(port, process, beside, requests, seconds):
    """The latency of a query beside decoding, embedding and searching without a server.

    Without a server the model runs with all cores (`bare`), and in one thread, as in the server.
    """

    def served():
        begun, times = cpu_of(process), []
        for request in requests:
            start = time.perf_counter()
            caller.ask(request)
            times.append(time.perf_counter() - start)
        return times, (cpu_of(process) - begun) / len(times)

    found = collections.defaultdict(list)
    for bare in beside.values():
        bare("searches")  # it may still be loading
    end = time.perf_counter() + seconds
    with Caller(port) as caller:
        while time.perf_counter() < end:  # alternating
            for name, bare in beside.items():
                found[name].append(bare("searches"))
            found["served"].append(served())
    times = {
        name: statistics.median(t for each, _ in of for t in each) for name, of in found.items()
    }
    cpu = {name: statistics.median(used for _, used in of) for name, of in found.items()}
    return {
        "ratio": round(times["served"] / times["bare"], 3),
        "ratio_one_thread": round(times["served"] / times["bare_one_thread"], 3),
        **{f"{name}_ms": round(1e3 * took, 2) for name, took in times.items()},
        **{f"{name}_cpu_ms": round(1e3 * used, 2) for name, used in cpu.items()},
    }


def eight_clients(port, process, beside, requests, seconds):
    """Throughput beside that of the model alone, in batches of 8 of decoded images.

    The batches run one after another on all cores (`bare`), and side by side on one core each
    (`bare_one_thread`). Neither decodes, searches or speaks HTTP, and no clients share the cores.
    """
    cores, rounds, every = len(os.sched_getaffinity(0)), [], []
    for _ in range(3):  # alternating
        bare = beside["bare"]("forward", 1, seconds / 3)
        side = beside["bare_one_thread"]("forward", cores, seconds / 3)
        begun, used = cpu_of(process), time.process_time()
        found = load(port, requests, 8, seconds / 3)
        cpu = [(cpu_of(process) - begun) / len(found), (time.process_time() - used) / len(found)]
        most = cores / sum(cpu)  # if no core ever waits
        rate = summary(found, seconds / 3)["per_second"]
        rounds.append({
            "ratio": rate / bare[0],
            "ratio_one_thread": rate / side[0],
            "ratio_if_always_busy": most / bare[0],
            "bare_per_second": bare[0],
            "bare_one_thread_per_second": side[0],
            "bare_cpu_ms": 1e3 * bare[1],
            "bare_one_thread_cpu_ms": 1e3 * side[1],
            "served_cpu_ms": 1e3 * cpu[0],
            "clients_cpu_ms": 1e3 * cpu[1],
        })  # fmt: skip
        every += found
    eight = summary(every, seconds)
    return {
        **{name: round(statistics.median(r[name] for r in rounds), 3) for name in rounds[0]},
        **eight,
        "p99_over_p50": round(eight["p99_ms"] / eight["p50_ms"], 2),
    }


def reload(port, requests, publish):
    """How a new version is taken while eight clients ask, and one is published after 2 s."""
    with futures.ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load, port, requests, 8, 6.0)
        time.sleep(2.0)
        publish()
        published = time.perf_counter()
        found = loading.result()
    old = min(version for status, _, _, version in found if status == 200)
    answered = [(at + took, version) for status, at, took, version in found if status == 200]
    taken = min((end for end, version in answered if version > old), default=float("nan"))
    return {
        "seconds": round(taken - published, 2),
        "answers": len(found),
        "failed": sum(status != 200 for status, *_ in found),
        # Asked after an answer of the new version, and answered from the old one.
        "stale": sum(at > taken and version == old for _, at, _, version in found),
    }


def _size(index):
    from retrieval.catalogue import versions

    total = 0
    for at, _, names in os.walk(versions.current(index)):
        total += sum(os.path.getsize(os.path.join(at, name)) for name in names)
    return total


if __name__ == "__main__":
    main()
