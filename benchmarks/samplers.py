"""Rows per second that samplers draw through tf.data, at the size of Stanford Online Products.

60,000 images of 11,000 products in 12 categories of unequal size; batches of 16 x 4. The ratio is
to the same pipeline with rows in order instead of a sampler.

    python -m benchmarks.samplers [--quick]
"""

import contextlib
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import metriclearn
from benchmarks import figures, timing

v1 = tf.compat.v1
IMAGES, PRODUCTS, CATEGORIES = 60_000, 11_000, 12


def table():
    rng = np.random.default_rng(0)
    first_two = np.repeat(np.arange(PRODUCTS), 2)
    labels = np.concatenate([first_two, rng.integers(0, PRODUCTS, IMAGES - 2 * PRODUCTS)])
    rng.shuffle(labels)
    categories = rng.choice(CATEGORIES, PRODUCTS, p=rng.dirichlet(np.full(CATEGORIES, 5.0)))
    domains = np.where(rng.random(IMAGES) < 0.5, "consumer", "shop")
    return labels, categories[labels], domains


def measure(quick=False, rounds=5, steps=1000):
    rounds, steps = (3, 300) if quick else (rounds, steps)
    labels, categories, domains = table()
    size = {"products": 16, "images": 4}
    in_category = {"categories": categories, "single_category": 0.8}
    samplers = {
        "rows in order": lambda step: (step * 64 + tf.range(64, dtype=tf.int64)) % IMAGES,
        "pk_sampler 16 x 4": metriclearn.pk_sampler(labels, **size),
        "pk_sampler 16 x 4, 0.8 single category": metriclearn.pk_sampler(
            labels, **size, **in_category
        ),
        "hierarchical_sampler 4 x 4 x 4": metriclearn.hierarchical_sampler(
            labels, categories, categories_per_batch=4, products=4, images=4
        ),
        "balanced_sampler 64": metriclearn.balanced_sampler(labels, batch_size=64),
        "pair_sampler 32": metriclearn.pair_sampler(labels, domains, pairs=32),
        "pair_sampler 32, 0.8 single category": metriclearn.pair_sampler(
            labels, domains, pairs=32, **in_category
        ),
    }
    with contextlib.ExitStack() as stack:
        draws = [stack.enter_context(drawing(sample)) for sample in samplers.values()]
        turns = [lambda draw=draw: timing.seconds(draw, steps) for draw in draws]
        plain, *seconds = timing.alternate(turns, rounds)
    for name, each in zip(list(samplers)[1:], seconds, strict=True):
        note = f"{64 / np.median(each):,.0f} rows per second"
        yield figures.figure(f"{name} over rows in order, speed", plain / each, note=note)


@contextlib.contextmanager
def drawing(sample):
    """Yields a function that draws one batch of 64 rows."""
    with tf.Graph().as_default():
        steps = tf.data.Dataset.range(np.iinfo(np.int64).max)
        batches = steps.map(sample, num_parallel_calls=2, deterministic=True).prefetch(8)
        batch = v1.data.make_one_shot_iterator(batches).get_next()
        with v1.Session() as session:
            yield session.make_callable(batch)


if __name__ == "__main__":
    figures.program(measure)
