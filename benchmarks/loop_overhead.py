"""What the trainer costs beside its own steps.

    python benchmarks/loop_overhead.py [--steps=600] [--rounds=3]

Trains models.simple with progress, summaries and checkpoints at their default intervals, and runs a
bare `make_callable` loop over the same graph and data, by turns in one process. Prints the ratio of
their steps/s (1 would be free), and how long the loop stalls for a checkpoint.
"""

import argparse
import statistics
import tempfile
import time

from trainer import quiet

quiet.import_tensorflow()

import tensorflow as tf  # noqa: E402

from models import simple  # noqa: E402
from trainer import checkpoints, loop, meters, optimizers, schedules, towers  # noqa: E402

v1 = tf.compat.v1

WARM_UP = 100  # steps: TensorFlow prepares each kind of step, plain and with summaries, once
STALLS = []


def bare(config, steps):
    """Returns seconds of the updates after WARM_UP with nothing around them."""
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
        with v1.Session(config=towers.session_config(config, devices)) as session:
            session.run(v1.global_variables_initializer())
            session.run(iterator.initializer)
            run = session.make_callable([loss, update])
            for i in range(steps):
                if i == WARM_UP:
                    start = time.perf_counter()
                run()
            return time.perf_counter() - start


class Timed(meters.Progress):
    """Times the loop from the report at WARM_UP to its last one."""

    def report(self, step, loss, learning_rate):
        super().report(step, loss, learning_rate)
        if step == WARM_UP:
            Timed.start = time.perf_counter()
        Timed.seconds = time.perf_counter() - Timed.start if step >= WARM_UP else None


class TimedWriter(checkpoints.Writer):
    """Notes how long each save keeps the loop waiting."""

    def save(self, step, **options):
        start = time.perf_counter()
        super().save(step, **options)
        STALLS.append(time.perf_counter() - start)


def trained(config, steps):
    """Returns seconds of the same updates in the real loop, checkpoints and summaries included."""
    with tempfile.TemporaryDirectory() as folder:
        config["trainer.experiment_base_dir"] = folder
        loop.train(simple, config)
    return Timed.seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    meters.Progress, checkpoints.Writer = Timed, TimedWriter
    config = simple.config
    config["model.num_steps"] = options.steps
    # Validation is work of its own, not overhead.
    config["trainer.validation_step_interval"] = config["trainer.evaluation_interval"] = 0
    ratios, timed = [], options.steps - WARM_UP
    for _ in range(options.rounds):
        one, other = bare(config, options.steps), trained(config, options.steps)
        ratios.append(one / other)
        print(
            f"bare {timed / one:.2f} steps/s, trainer {timed / other:.2f} steps/s, "
            f"ratio {one / other:.3f}",
            flush=True,
        )
    print(f"trainer / bare loop: {statistics.median(ratios):.3f} (median of {len(ratios)})")
    stall = statistics.median(STALLS)
    print(f"a checkpoint stalls the loop for {stall * 1000:.1f} ms (median)")


if __name__ == "__main__":
    main()
