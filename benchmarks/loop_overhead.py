"""What the trainer costs beside its own steps.

    python -m benchmarks.loop_overhead [--quick] [--steps=1200]

Trains models.simple with progress, summaries and checkpoints at their default intervals. After
every 50 steps it pauses and runs 50 steps of a bare `make_callable` loop over the same graph and
data. The ratio is of their speeds (1 would be free). The stall is how long the loop waits for a
checkpoint; five are written.
"""

import contextlib
import statistics
import sys
import tempfile
import time

import numpy as np

from benchmarks import figures
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


def measure(quick=False, steps=1200):
    steps = 300 if quick else steps
    config = simple.config
    config["model.num_steps"] = steps
    config["trainer.checkpoint_save_interval"] = steps // 5
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
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for figures
            loop.train(simple, config)
    over, stall = figures.REACH["loop_overhead"]
    step = statistics.median(bare) / BLOCK
    note = f"{1 / step:.1f} steps/s bare, blocks of {BLOCK} steps"
    yield figures.figure(over, np.divide(bare, trained), note=note)
    note = f"{1e3 * statistics.median(stalls):.1f} ms of a step's {1e3 * step:.1f} ms"
    yield figures.figure(stall, np.divide(stalls, step), note=note)


if __name__ == "__main__":
    figures.program(measure)
