"""How fast samplers deal: rows per second through tf.data, at the size of Stanford Online Products.

60,000 pictures of 11,000 products in 12 categories of unequal size; batches of 16 x 4.

    python -m benchmarks.samplers
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import metriclearn

v1 = tf.compat.v1
PICTURES, PRODUCTS, CATEGORIES = 60_000, 11_000, 12
STEPS = 2000


def table():
    rng = np.random.default_rng(0)
    first_two = np.repeat(np.arange(PRODUCTS), 2)
    labels = np.concatenate([first_two, rng.integers(0, PRODUCTS, PICTURES - 2 * PRODUCTS)])
    rng.shuffle(labels)
    categories = rng.choice(CATEGORIES, PRODUCTS, p=rng.dirichlet(np.full(CATEGORIES, 5.0)))
    domains = np.where(rng.random(PICTURES) < 0.5, "consumer", "shop")
    return labels, categories[labels], domains


def rows_per_second(sample):
    with tf.Graph().as_default():
        steps = tf.data.Dataset.range(np.iinfo(np.int64).max)
        batches = steps.map(sample, num_parallel_calls=2, deterministic=True).prefetch(8)
        batch = v1.data.make_one_shot_iterator(batches).get_next()
        with v1.Session() as session:
            draw = session.make_callable(batch)
            rows = sum(len(draw()) for _ in range(100)) // 100
            start = time.perf_counter()
            for _ in range(STEPS):
                draw()
            return rows * STEPS / (time.perf_counter() - start)


def main():
    labels, categories, domains = table()
    size = {"products": 16, "images": 4}
    in_category = {"categories": categories, "single_category": 0.8}
    samplers = {
        "P x K": metriclearn.pk_sampler(labels, **size),
        "P x K, 0.8 single category": metriclearn.pk_sampler(labels, **size, **in_category),
        "hierarchical 4 x 4 x 4": metriclearn.hierarchical_sampler(
            labels, categories, categories_per_batch=4, products=4, images=4
        ),
        "balanced 64": metriclearn.balanced_sampler(labels, batch_size=64),
        "pairs 32": metriclearn.pair_sampler(labels, domains, pairs=32),
        "pairs 32, 0.8 single category": metriclearn.pair_sampler(
            labels, domains, pairs=32, **in_category
        ),
    }
    print(f"{PICTURES} pictures, {PRODUCTS} products, {os.cpu_count()} cores; rows per second")
    for name, sample in samplers.items():
        print(f"{name:32}{rows_per_second(sample):10.0f}")


if __name__ == "__main__":
    main()
