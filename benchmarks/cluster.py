"""Training on several workers: what it costs on one machine, and a model of what it costs on many.

    python benchmarks/cluster.py [--steps=240]    two workers against one process with two towers;
                                                  an all-reduce over loopback against memcpy
    python benchmarks/cluster.py --table          the table of docs/scaling.md, from the fit below

The model of an exchange is alpha-beta: a ring of W workers takes 2 (W - 1) alpha for its messages
and 2 (W - 1) / W * bytes / beta for the bytes (Thakur, Rabenseifner, Gropp 2005).
"""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Fitted to this program's own measurement; see docs/scaling.md.
ALPHA = 1e-3  # seconds per message of TensorFlow's ring over gRPC
NCCL_ALPHA = 1e-5  # assumed: NCCL over a fast network
BETA = 100e9 / 8  # bytes/s of a link of 100 Gb/s
BUCKET = 8 << 20  # bytes, see trainer.collectives
# Parameters, and the images/s of one GPU that the table assumes.
NETWORKS = {"ResNet-50": (25.6e6, 1000.0), "ViT-B/16": (86.6e6, 400.0)}
PER_GPU = 64  # images


def environment(port, task):
    jobs = {"worker": [f"127.0.0.1:{port + i}" for i in range(2)]}
    config = {"cluster": jobs, "task": {"type": "worker", "index": task}}
    return {"TF_CONFIG": json.dumps(config), "PYTHONPATH": ROOT}


# ---------------------------------------------------------------------------- images/s


def images_per_second(workers, steps, folder, port):
    """Best images/s of the reports after the first, with two towers in all.

    Other programs on the machine only make it slower.
    """
    every = max(steps // 12, 1)
    command = [
        *(sys.executable, "-m", "trainer.main", "--model=models.simple"),
        f"--trainer.experiment_base_dir={folder}",
        f"--trainer.experiment_name=workers-{workers}",
        f"--trainer.num_towers={2 // workers}",
        f"--trainer.print_interval={every}",
        f"--model.num_steps={steps}",
        *("--trainer.evaluation_interval=0", "--trainer.validation_step_interval=0"),
        "--trainer.summary_save_interval=0",
    ]
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | (environment(port, task) if workers > 1 else {"PYTHONPATH": ROOT}),
            stdout=subprocess.PIPE,
            text=True,
        )
        for task in range(workers)
    ]
    texts = [process.communicate()[0] for process in processes]
    assert not any(process.returncode for process in processes), texts
    speeds = [float(text) for text in re.findall(r"(\d+) images/s", texts[0])]
    return max(speeds[1:])


# ---------------------------------------------------------------------------- all-reduce


def all_reduce(task, port, sizes, repeats, results):
    """One of two workers: seconds to average each number of floats, the best of some.

    In buckets, as gradients are.
    """
    os.environ |= environment(port, task)
    sys.path.insert(0, ROOT)
    from trainer import quiet

    quiet.import_tensorflow()
    import tensorflow as tf

    from models import simple
    from trainer import cluster

    v1, group = tf.compat.v1, cluster.from_environment(simple.config)
    proto = group.start(simple.config, ["/device:CPU:0"])
    found = {}
    with tf.Graph().as_default(), v1.device("/device:CPU:0"):
        means = {}
        for size in sizes:
            variable = v1.get_variable(f"v{size}", initializer=tf.ones([size]))
            (mean,) = group._exchanges.mean([variable.read_value()])
            means[size] = mean[0]
        with v1.Session(group.target, config=proto) as session:
            session.run(v1.global_variables_initializer())
            for size, mean in means.items():
                run, times = session.make_callable(mean), []
                for _ in range(repeats + 1):
                    start = time.perf_counter()
                    assert run() == 1
                    times.append(time.perf_counter() - start)
                found[size] = min(times[1:])
    results.put((task, found))


def memcpy(size):
    """Seconds to copy some floats."""
    source, target = np.ones(size, np.float32), np.empty(size, np.float32)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def fit(seconds, workers=2):
    """(alpha, beta) by least squares, relative to the measured {floats: seconds}."""
    sizes, times = np.array(list(seconds)) * 4.0, np.array(list(seconds.values()))
    hops = 2 * (workers - 1)
    terms = np.stack([np.full(len(sizes), hops), hops / workers * sizes], 1)
    alpha, slope = np.linalg.lstsq(terms / times[:, None], np.ones(len(sizes)), rcond=None)[0]
    return alpha, 1 / slope


# ---------------------------------------------------------------------------- the model


def exchange(workers, size, alpha, beta, bucket=BUCKET):
    """Modeled seconds to average `size` bytes over a ring of workers, bucket by bucket."""
    messages = 2 * (workers - 1) * -(-size // bucket)
    return messages * alpha + 2 * (workers - 1) / workers * size / beta


def table(alpha=ALPHA, beta=BETA):
    """The table of docs/scaling.md, as Markdown: everything in it is modeled."""
    lines = [
        "| network | GPUs | compute, ms | NCCL, ms | efficiency | gRPC ring, ms | efficiency |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for network, (parameters, speed) in NETWORKS.items():
        for workers in (8, 64, 512):
            compute = PER_GPU / speed
            cells = []
            for each in (NCCL_ALPHA, alpha):
                spent = exchange(workers, 4 * parameters, each, beta)
                cells += [f"{1000 * spent:,.0f}", f"{compute / (compute + spent):.0%}"]
            lines.append(f"| {network} | {workers} | {1000 * compute:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=23900)
    parser.add_argument("--table", action="store_true", help="print the modeled table and end")
    options = parser.parse_args()
    if options.table:
        print(table())
        return
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    sizes = [1 << 16, 1 << 20, 1 << 22, 25_000_000]
    processes = [
        context.Process(target=all_reduce, args=(task, options.port, sizes, 5, results))
        for task in (0, 1)
    ]
    for process in processes:
        process.start()
    seconds = dict(results.get() for _ in processes)[0]
    for process in processes:
        process.join()
    for size, spent in seconds.items():
        copied = memcpy(size)
        print(
            f"all-reduce of {size:,} floats over loopback: {1000 * spent:.1f} ms, "
            f"{4e-9 * size / spent:.2f} GB/s; memcpy {1000 * copied:.2f} ms, {spent / copied:.0f}x"
        )
    alpha, beta = fit(seconds)
    print(f"fitted: alpha {1e3 * alpha:.2f} ms, beta {beta / 1e9:.2f} GB/s", flush=True)
    speeds = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(2 * options.rounds):
            workers, port = 1 + turn % 2, options.port + 10 * (turn + 1)
            found = images_per_second(workers, options.steps, f"{folder}/{turn}", port)
            speeds[workers].append(found)
    one, two = max(speeds[1]), max(speeds[2])
    print(
        f"models.simple, the best of {options.rounds} runs each, in turns: {two:.0f} images/s with "
        f"2 workers x 1 tower, {one:.0f} with 1 process x 2 towers: {two / one:.2f} ({speeds})"
    )


if __name__ == "__main__":
    main()
