"""Images/s of one training step beside PyTorch with pytorch-metric-learning.

    python -m benchmarks.train_step [--size=64] [--batch=64] [--threads=2] [--rounds=7]

The same ResNet-18, batch-hard triplet loss and momentum SGD on both sides, the same number of
threads. Each variant is a process of its own; they run by turns, a few steps each, so that all meet
the same weather, and the printed ratios are medians over the rounds.

The row "matrix products" is the physical limit: it does the multiplications of a step's
convolutions (forward, and twice that backward) as bare float32 products of 2048 x 2048 matrices.
"""

import argparse
import statistics
import subprocess
import sys
import time

from benchmarks import peer

VARIANTS = {
    "float32": ("ours",),
    "bfloat16": ("ours", "bf16"),
    "matrix products": ("products",),
    "PyTorch eager": ("peer",),
    "PyTorch eager, channels_last": ("peer", "channels_last"),
    "PyTorch eager, bfloat16": ("peer", "bf16"),
    "PyTorch compile": ("peer", "compile"),
    "PyTorch compile, bfloat16": ("peer", "compile", "bf16"),
}


def answer(step):
    """Answers every number of steps on stdin with the seconds they took."""
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(time.perf_counter() - start, flush=True)


def products(size, batch, threads):
    from trainer import quiet

    quiet.import_tensorflow()

    import tensorflow as tf

    from models import nets
    from trainer import inspect

    v1 = tf.compat.v1
    side = 2048
    with tf.Graph().as_default():
        example = nets.resnet18(v1.placeholder(tf.float32, [1, int(size), int(size), 3]), True)
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
            answer(session.make_callable(step))


def ours(size, batch, threads, *options):
    from trainer import quiet

    quiet.import_tensorflow()

    import numpy as np
    import tensorflow as tf

    import metriclearn
    from models import nets
    from trainer import layers, optimizers, towers
    from trainer.config import Config

    v1 = tf.compat.v1
    size, batch = int(size), int(batch)
    config = Config({"trainer.intra_op_threads": int(threads), "trainer.inter_op_threads": 2})
    config["trainer.mixed_precision"] = "bfloat16" if "bf16" in options else ""

    class Model:
        @staticmethod
        def build(inputs, train_phase):
            features = nets.resnet18(inputs["image"], train_phase)
            embeddings = tf.nn.l2_normalize(layers.dense(features, 128, "embedding"), 1)
            return layers.ModelDict(embeddings=embeddings, labels=inputs["label"])

        @staticmethod
        def loss(outputs):
            return metriclearn.triplet_loss(outputs.labels, outputs.embeddings)

    with tf.Graph().as_default():
        image = np.random.default_rng(0).random((batch, size, size, 3), np.float32)
        image = v1.get_variable("image", initializer=image, trainable=False)
        inputs = {"image": image.read_value(), "label": tf.range(batch, dtype=tf.int64) // 4}
        devices = towers.devices()
        replicas = towers.replicate(Model.build, inputs, devices, train_phase=True)
        loss, _ = towers.loss_of(Model, replicas, towers.gather(replicas))
        pairs = towers.gradients(Model, replicas, loss, v1.trainable_variables(), devices)
        optimizer = optimizers.create(config, tf.constant(0.01))
        with tf.control_dependencies(v1.get_collection(v1.GraphKeys.UPDATE_OPS)):
            update = optimizer.apply_gradients(pairs)
        with v1.Session(config=towers.session_config(config, devices)) as session:
            session.run(v1.global_variables_initializer())
            answer(session.make_callable([loss, update]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    shape = [str(options.size), str(options.batch), str(options.threads)]
    workers = {}
    for name, (side, *extra) in VARIANTS.items():
        command = [sys.executable, "-m", "benchmarks.train_step", "--worker", side]
        if side == "peer":
            command = [
                peer.python(),
                str(peer.pathlib.Path(__file__).parent / "peer_train_step.py"),
            ]
        workers[name] = subprocess.Popen(
            [*command, *shape, *extra], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    seconds = {name: [] for name in workers}
    for turn in range(options.rounds + 1):
        for name, worker in workers.items():
            worker.stdin.write(f"{options.steps}\n")
            worker.stdin.flush()
            reply = worker.stdout.readline()
            if not reply:
                sys.exit(f"{name}: the worker stopped")
            if turn:  # the first turn compiles
                seconds[name].append(float(reply))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    images = options.steps * options.batch
    print(f"{'':30} images/s   over PyTorch eager   over our float32")
    for name, times in seconds.items():
        over = [
            statistics.median(b / a for a, b in zip(times, seconds[other], strict=True))
            for other in ("PyTorch eager", "float32")
        ]
        print(f"{name:30} {images / statistics.median(times):8.1f} {over[0]:15.2f} {over[1]:19.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        {"ours": ours, "products": products}[sys.argv[2]](*sys.argv[3:])
    else:
        main()
