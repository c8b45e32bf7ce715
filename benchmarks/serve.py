"""The search server under load: latency, throughput and goodput beside the bare model, in one run.

    python -m benchmarks.serve [--items=100000] [--seconds=10] [--photos=FOLDER]

Builds an index of random items of 128 dimensions with EfficientNet-Lite0 at 224 px (or takes
--index=INDEX), starts `prototrain serve` on it on loopback, and compares it with the same embedder
and the same search in this process. The figures are ratios of measurements that alternate, since
another program on the machine slows both; processor time tells what a query costs in any case.
Every phase is bounded by --seconds.
"""

import argparse
import concurrent.futures as futures
import contextlib
import http.client
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import psutil
from PIL import Image

MIB = 2**20
BOUNDARY = "prototrain-benchmark"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def photos(folder, count=32):
    """JPEG files: of a folder, or made: smooth noise at 640 x 480."""
    if folder:
        names = sorted(n for n in os.listdir(folder) if n.lower().endswith((".jpg", ".jpeg")))
        return [open(os.path.join(folder, name), "rb").read() for name in names[:count]]
    found = []
    for n in range(count):
        pixels = np.random.default_rng(n).integers(0, 256, (12, 16, 3)).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC).save(out, "JPEG")
        found.append(out.getvalue())
    return found


def build(folder, count):
    """Writes an index of `count` random items that carries Lite0."""
    import tensorflow as tf

    from models import backbones
    from retrieval.catalogue import index
    from retrieval.embeddings import store
    from retrieval.embeddings.embedder import Embedder

    def graph(session):
        images = tf.compat.v1.placeholder(tf.uint8, [None, 224, 224, 3], "image")
        network = backbones.load("pretrained:efficientnet_lite0")
        features = network.apply(images, False)
        head = np.random.default_rng(1).normal(size=(features.shape[1], 128)).astype(np.float32)
        session.run(tf.compat.v1.global_variables_initializer())
        return {"image": images}, tf.nn.l2_normalize(features @ head, 1)

    source = {"checkpoint_sha256": "benchmark"}
    with Embedder.of_graph(graph, size=(224, 224), channels=3, source=source) as embedder:
        place = os.path.join(folder, "store")
        os.makedirs(place)
        manifest = store.begin(place, source)
        random = np.random.default_rng(0)
        # Products of 20 images: without products, any index must scan everything.
        centers = random.normal(size=(count // 20 + 1, embedder.dimensions))
        for start in range(0, count, 10_000):
            size = min(10_000, count - start)
            ids = np.char.add("item-", np.arange(start, start + size).astype(str))
            near = centers[random.integers(0, len(centers), size)]
            rows = (near + 0.3 * random.normal(size=near.shape)).astype(np.float32)
            store.append(place, manifest, store.Embedded(rows, ids, ids, np.full(size, "")), 1)
        store.finish(place, manifest)
        index.build(place, os.path.join(folder, "index"), "IVF256,Flat", save_model=embedder.save)
    return os.path.join(folder, "index")


@contextlib.contextmanager
def server(index, *flags):
    """Yields (port, process, seconds from start to ready) of a server of its own."""
    command = [sys.executable, "-m", "retrieval.serve.main", f"--index={index}", "--port=0"]
    start = time.perf_counter()
    # A session of its own: Linux shares a busy machine between sessions, not processes.
    process = subprocess.Popen(
        [*command, *flags], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        line = next((line for line in process.stderr if "http://" in line), "")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        port = int(line.split("http://127.0.0.1:")[1].split("/")[0])
        while True:
            with contextlib.suppress(OSError):
                if ask(http.client.HTTPConnection("127.0.0.1", port), "GET", "/readyz") == 200:
                    break
            time.sleep(0.02)
        yield port, process, time.perf_counter() - start
    finally:
        process.terminate()
        process.wait()


def cpu_of(process):
    """Seconds of processor time that a server has used, all its threads together."""
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system


def ask(connection, method, path, body=None):
    kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"} if body else {}
    connection.request(method, path, body, kind)
    answer = connection.getresponse()
    answer.read()
    wait = answer.getheader("Retry-After")
    ask.wait = float(wait) if wait else 0.0
    return answer.status


def form(photo):
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    return head.encode() + photo + f"\r\n--{BOUNDARY}--\r\n".encode()


def load(port, bodies, clients, seconds):
    """Clients that ask without a pause, and wait as a 503 says; [(status, seconds)]."""
    end, found = time.perf_counter() + seconds, []

    def client(n):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        turn, mine = n, []
        while time.perf_counter() < end:
            start = time.perf_counter()
            status = ask(connection, "POST", "/v1/search", bodies[turn % len(bodies)])
            mine.append((status, time.perf_counter() - start))
            turn += 1
            if status == 503:
                time.sleep(min(1.0, max(0.0, end - time.perf_counter())))
        connection.close()
        return mine

    with futures.ThreadPoolExecutor(clients) as pool:
        for mine in pool.map(client, range(clients)):
            found += mine
    return found


def summary(found, seconds):
    good = sorted(time for status, time in found if status == 200)
    refused = sorted(time for status, time in found if status == 503)
    others = {status for status, _ in found} - {200, 503}
    return {
        "per_second": round(len(good) / seconds, 1),
        "p50_ms": round(1e3 * statistics.median(good), 1) if good else None,
        "p99_ms": round(1e3 * good[int(0.99 * len(good))], 1) if good else None,
        "refused": len(refused),
        "refused_p99_ms": round(1e3 * refused[int(0.99 * len(refused))], 1) if refused else None,
        "other_statuses": sorted(others),
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
    from retrieval.catalogue.opened import Catalogue

    given = photos(options.photos)
    bodies = [form(photo) for photo in given]
    index = options.index or build(folder, options.items)
    # Bare: the time of this process while the server idles.
    with Catalogue.open(index) as catalogue, catalogue.embedder() as embedder:
        embedder.embed(given[:8])
        results = {"items": catalogue.manifest["count"], "dimensions": embedder.dimensions}

        def bare(photo):
            start = time.perf_counter()
            vector = embedder.run({"image": embedder.decode(photo)[None]})
            catalogue.results(catalogue.find(vector, 10))
            return time.perf_counter() - start

        with server(index, *options.flags) as (port, process, ready):
            connection = http.client.HTTPConnection("127.0.0.1", port)
            alone, served, cpu = [], [], [0.0, cpu_of(process)]
            end = time.perf_counter() + 2 * options.seconds
            while time.perf_counter() < end:  # alternating
                for photo, body in zip(given, bodies, strict=True):
                    begun = time.process_time()
                    alone.append(bare(photo))
                    cpu[0] += time.process_time() - begun
                    start = time.perf_counter()
                    assert ask(connection, "POST", "/v1/search", body) == 200
                    served.append(time.perf_counter() - start)
            cpu = [1e3 * seconds / len(alone) for seconds in (cpu[0], cpu_of(process) - cpu[1])]
            medians = [1e3 * statistics.median(times) for times in (alone, served)]
            results["one_client"] = {
                "bare_ms": round(medians[0], 2),
                "served_ms": round(medians[1], 2),
                "ratio": round(medians[1] / medians[0], 3),
                "bare_cpu_ms": round(cpu[0], 2),
                "served_cpu_ms": round(cpu[1], 2),
            }
            pixels = np.stack([embedder.decode(photo) for photo in given])
            rounds = []
            for _ in range(3):  # alternating
                start, count, used = time.perf_counter(), 0, time.process_time()
                while time.perf_counter() - start < options.seconds / 3:
                    embedder.run({"image": pixels[:8]})
                    count += 8
                forward = count / (time.perf_counter() - start)
                forward_cpu = 1e3 * (time.process_time() - used) / count
                used = cpu_of(process)
                eight = load(port, bodies, 8, options.seconds / 3)
                served_cpu = 1e3 * (cpu_of(process) - used) / len(eight)
                found = summary(eight, options.seconds / 3)
                rounds.append((forward, found, eight, forward_cpu, served_cpu))
            forward = statistics.median(r[0] for r in rounds)
            eight = summary([one for r in rounds for one in r[2]], options.seconds)
            rates = [r[1]["per_second"] / r[0] for r in rounds]
            results["eight_clients"] = eight | {
                "bare_forward_per_second": round(forward, 1),
                "ratio": round(statistics.median(rates), 3),
                "p99_over_p50": round(eight["p99_ms"] / eight["p50_ms"], 2),
                "bare_forward_cpu_ms": round(statistics.median(r[3] for r in rounds), 2),
                "served_cpu_ms": round(statistics.median(r[4] for r in rounds), 2),
            }
            peak = max(eight["per_second"], summary(
                load(port, bodies, 32, options.seconds), options.seconds
            )["per_second"])  # fmt: skip
            flood = summary(
                load(port, bodies, 100, options.overload_seconds), options.overload_seconds
            )
            results["hundred_clients"] = flood | {
                "peak_per_second": peak,
                "goodput_of_peak": round(flood["per_second"] / peak, 3),
            }
            results["start_to_ready_s"] = round(ready, 2)
            memory = psutil.Process(process.pid).memory_info()
            results["memory_mib"] = {
                "resident": round(memory.rss / MIB),
                "model_and_index": round(_size(index) / MIB),
            }
        return results


def _size(index):
    from retrieval.catalogue import versions

    total = 0
    for at, _, names in os.walk(versions.current(index)):
        total += sum(os.path.getsize(os.path.join(at, name)) for name in names)
    return total


if __name__ == "__main__":
    main()
