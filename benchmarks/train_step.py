"""Images per second of one training step beside PyTorch with pytorch-metric-learning.

    python -m benchmarks.train_step [--quick] [--size=64] [--batch=64] [--threads=2] [--rounds=7]

The same ResNet-18, batch-hard triplet loss and momentum SGD on both sides, the same number of
threads. Each variant is a process of its own; they run by turns, a few steps each, and ratios are
medians over the turns.

"of bare matrix products" compares with the physical limit: the multiplications of a step's
convolutions (forward, and twice that backward) as float32 products of 2048 x 2048 matrices.
"""

import contextlib
import os
import sys

import numpy as np

from benchmarks import figures, peer, timing

FLOAT32, BFLOAT16 = figures.REACH["train_step"]
PEERS = {
    "PyTorch eager": (),
    "PyTorch eager, channels_last": ("channels_last",),
    "PyTorch eager, bfloat16": ("bf16",),
    "PyTorch compile": ("compile",),
    "PyTorch compile, bfloat16": ("compile", "bf16"),
}

QUICK = ("PyTorch eager", "PyTorch eager, bfloat16", "PyTorch compile, bfloat16")


def measure(quick=False, size=64, batch=64, threads=0, rounds=7, steps=4):
    threads = threads or os.cpu_count()
    kinds = dict(PEERS)
    if quick:
        rounds, steps = 3, 1
        kinds = {name: kinds[name] for name in QUICK}
    shape = [str(size), str(batch), str(threads)]
    mine = [sys.executable, "-m", "benchmarks.train_step", "--worker"]
    commands = {
        "float32": [*mine, "ours", *shape],
        "bfloat16": [*mine, "ours", *shape, "bf16"],
        "matrix products": [*mine, "products", *shape],
    }
    if other := peer.installed():
        for name, options in kinds.items():
            commands[name] = [other, peer.script("peer_train_step.py"), *shape, *options]
    workers, failed = {}, []
    with contextlib.ExitStack() as stack:
        for name, command in commands.items():
            worker = stack.enter_context(timing.Worker(command))
            try:
                worker(steps)  # compiles
            except RuntimeError:
                if name not in PEERS:
                    raise
                failed.append(name)  # torch.compile needs a compiler for C++
            else:
                workers[name] = worker
        turns = [lambda w=w: w(steps) for w in workers.values()]
        turns = timing.alternate(turns, rounds, warm=0)
    times = dict(zip(workers, turns, strict=True))
    speeds = {name: batch / np.median(t) for name, t in times.items()}
    note = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
    note = f"images/s: {note}" + "".join(f"; {name} failed" for name in failed)
    if other:
        yield figures.figure(FLOAT32, times["PyTorch eager"] / times["float32"], note=note)
        best = max((name for name in speeds.keys() & PEERS if "bfloat16" in name), key=speeds.get)
        yield figures.figure(BFLOAT16, times[best] / times["bfloat16"], note=f"best: {best}")
    else:
        yield figures.Figure(FLOAT32, None, note=f"{peer.MISSING}; {note}")
        yield figures.Figure(BFLOAT16, None, note=peer.MISSING)
    of_limit = times["matrix products"] / times["float32"]
    yield figures.figure("train step in float32, share of bare matrix products", of_limit)


def products(size, batch, threads):
    from trainer import quiet

    quiet.import_tensorflow()

    import tensorflow as tf

    from models.backbones import scratch
    from trainer import inspect

    v1 = tf.compat.v1
    side = 2048
    with tf.Graph().as_default():
        example = scratch.resnet18(v1.placeholder(tf.float32, [1, int(size), int(size), 3]), True)
        flops = sum(inspect.count_flops([example])[0].values())
    count = 3 * flops * int(batch) / (2 * side**3)
    with tf.Graph().as_default():
        normal = v1.random_normal_initializer()
        rows = v1.get_variable("rows", [round(count * side), side], initializer=normal)
        columns = v1.get_variable("columns", [side, side], initializer=normal)
        step = tf.matmul(rows, columns).op
        config = v1.ConfigProto(intra_op_parallelism_threads=int(threads))
        with v1.Session(config=config) as session:
            session.run(v1.global_variables_initializer())
            timing.answer(session.make_callable(step))


def ours(size, batch, threads, *options):
    from trainer import quiet

    quiet.import_tensorflow()

    from benchmarks import steps
    from models.backbones import scratch
    from trainer.config import Config

    config = Config({"trainer.intra_op_threads": int(threads), "trainer.inter_op_threads": 2})
    config["trainer.mixed_precision"] = "bfloat16" if "bf16" in options else ""
    with steps.training(scratch.resnet18, config, int(size), int(batch)) as (step, _):
        timing.answer(step)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        {"ours": ours, "products": products}[sys.argv[2]](*sys.argv[3:])
    else:
        figures.program(measure)
