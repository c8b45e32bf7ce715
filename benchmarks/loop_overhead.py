"""What the trainer costs beside its own steps.

    python benchmarks/loop_overhead.py [--steps=1200]

Trains models.simple with progress, summaries and checkpoints at their default intervals. After
every 50 steps it pauses and runs 50 steps of a bare `make_callable` loop over the same graph and
data, so that both meet the same weather. Prints the ratio of their speeds (1 would be free), and
how long the loop stalls for a checkpoint.
"""

import argparse
import contextlib
import statistics
import tempfile
import time

from trainer import quiet

quiet.import_tensorflow()

import tensorflow as tf  # noqa: E402

from models import simple  # noqa: E402
from trainer import checkpoints, loop, meters, optimizers, schedules, towers  # noqa: E402

v1 = tf.compat.v1

BLOCK = 50  # steps by turns
WARM_UP = 100  # steps: TensorFlow prepares each kind of step, plain and with summaries, once


@contextlib.contextmanager
def bare_loop(config):
    """Yields a function that makes one update, with nothing around it."""
    with tf.Graph().as_default():
        v1.set_random_seed(0)
        step = v1.train.create_global_step()
        data = simple.datasets(tf.zeros([], tf.int64))["trn"].prefetch(2)
        iterator = v1.data.make_initializable_iterator(data)
        devices = towers.devices()
        replicas = towers.replicate(
            simple.build, iterator.get_next(), devices, train_phase=True, step=step
        )
        loss, _ = towers.loss_of(simple, replicas, towers.gather(replicas))
        gradients = towers.gradients(simple, replicas, loss, v1.trainable_variables(), devices)
        optimizer = optimizers.create(config, schedules.create(config, step))
        update = optimizer.apply_gradients(gradients, global_step=step)
        session = v1.Session(config=towers.session_config(config, devices))
        session.run(v1.global_variables_initializer())
        session.run(iterator.initializer)
        run = session.make_callable([loss, update])
        for _ in range(WARM_UP):
            run()
    yield run
    session.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1200)
    options = parser.parse_args()
    config = simple.config
    config["model.num_steps"] = options.steps
    # Validation is work of its own, not overhead.
    config["trainer.validation_step_interval"] = config["trainer.evaluation_interval"] = 0
    config["trainer.best_metric"] = ""
    bare, trained, stalls = [], [], []

    with bare_loop(config) as run, tempfile.TemporaryDirectory() as folder:

        class Alternating(meters.Progress):
            began = None

            def report(self, step, loss, learning_rate):
                images = super().report(step, loss, learning_rate)
                if step % BLOCK == 0 and step >= WARM_UP:
                    if self.began:
                        trained.append(time.perf_counter() - self.began)
                        start = time.perf_counter()
                        for _ in range(BLOCK):
                            run()
                        bare.append(time.perf_counter() - start)
                    self.began = time.perf_counter()
                return images

        class Timed(checkpoints.Writer):
            def save(self, step, **arguments):
                start = time.perf_counter()
                super().save(step, **arguments)
                stalls.append(time.perf_counter() - start)

        meters.Progress, checkpoints.Writer = Alternating, Timed
        config["trainer.experiment_base_dir"] = folder
        loop.train(simple, config)

    print(
        f"bare {BLOCK / statistics.mean(bare):.1f} steps/s, trainer "
        f"{BLOCK / statistics.mean(trained):.1f} steps/s over {len(bare)} blocks of {BLOCK}"
    )
    print(f"trainer / bare loop, all blocks: {sum(bare) / sum(trained):.3f}")
    ratios = [b / t for b, t in zip(bare, trained, strict=True)]
    print(f"trainer / bare loop, median block: {statistics.median(ratios):.3f}")
    print(f"a checkpoint stalls the loop for {statistics.median(stalls) * 1000:.1f} ms (median)")


if __name__ == "__main__":
    main()
