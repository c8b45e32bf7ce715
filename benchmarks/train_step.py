"""Images/s of one training step beside PyTorch with pytorch-metric-learning.

    python -m benchmarks.train_step [--size=64] [--batch=64] [--threads=2] [--rounds=7]

The same ResNet-18, batch-hard triplet loss and momentum SGD on both sides, the same number of
threads. Each variant is a process of its own; they run by turns, a few steps each, so that all meet
the same weather, and the printed ratios are medians over the rounds.
"""

import argparse
import statistics
import subprocess
import sys

from benchmarks import peer

VARIANTS = {
    "float32": ("ours",),
    "bfloat16": ("ours", "bf16"),
    "PyTorch eager": ("peer",),
    "PyTorch eager, channels_last": ("peer", "channels_last"),
    "PyTorch eager, bfloat16": ("peer", "bf16"),
    "PyTorch compile": ("peer", "compile"),
    "PyTorch compile, bfloat16": ("peer", "compile", "bf16"),
}


def ours(size, batch, threads, *options):
    """Answers every number of steps on stdin with the seconds they took."""
    import time

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
            step = session.make_callable([loss, update])
            for line in sys.stdin:
                start = time.perf_counter()
                for _ in range(int(line)):
                    step()
                print(time.perf_counter() - start, flush=True)


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
        command = [sys.executable, "-m", "benchmarks.train_step", "--worker"]
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
            answer = worker.stdout.readline()
            if not answer:
                sys.exit(f"{name}: the worker stopped")
            if turn:  # the first turn compiles
                seconds[name].append(float(answer))
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
        ours(*sys.argv[2:])
    else:
        main()
