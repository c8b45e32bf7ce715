import numpy as np
import pytest
import tensorflow as tf

from metriclearn import pk_sampler


def draw(sample, steps, start=0):
    """[steps, rows], through tf.data as a pipeline would."""
    dataset = tf.data.Dataset.range(start, start + steps).map(sample)
    return np.stack(list(dataset.as_numpy_iterator()))


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.repeat(np.arange(23), 2), rng.integers(0, 23, 60)])
    rng.shuffle(labels)
    return labels, np.array(["shoes", "bags", "hats"])[labels % 3]


def test_pk_batches_hold_distinct_products_and_pictures(table):
    labels, _ = table
    for batch in draw(pk_sampler(labels, products=5, images=3, seed=1), 40):
        products = labels[batch].reshape(5, 3)
        assert (products == products[:, :1]).all()
        assert len(set(products[:, 0])) == 5
        for product, rows in zip(products[:, 0], batch.reshape(5, 3), strict=True):
            assert len(set(rows)) == min(3, (labels == product).sum())


def test_pk_epoch_covers_all_products_then_all_pictures(table):
    labels, _ = table
    sample = pk_sampler(labels, products=5, images=3, seed=2)
    assert sample.steps_per_epoch == 5
    largest = np.bincount(labels).max()
    epochs = -(-largest // 3)
    batches = draw(sample, epochs * 5).reshape(epochs, -1)
    for epoch in batches:
        assert set(labels[epoch]) == set(range(23))
    assert set(batches.ravel()) == set(range(len(labels)))


def test_pk_is_a_pure_function_of_seed_and_step(table):
    labels, _ = table
    sample = pk_sampler(labels, products=4, images=2, seed=3)
    batches = draw(sample, 12)
    np.testing.assert_array_equal(draw(sample, 5, start=7), batches[7:])
    np.testing.assert_array_equal(sample(9), batches[9])
    other = draw(pk_sampler(labels, products=4, images=2, seed=4), 12)
    assert (other != batches).any(axis=1).all()


def test_shards_are_slices_of_the_same_batch(table):
    labels, _ = table
    options = {"products": 6, "images": 2, "seed": 5}
    whole = draw(pk_sampler(labels, **options), 9)
    parts = [draw(pk_sampler(labels, **options, shard=(w, 3)), 9) for w in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_single_category_share_is_kept_in_every_epoch(table):
    labels, categories = table
    sample = pk_sampler(
        labels, products=3, images=2, seed=6, categories=categories, single_category=0.75
    )
    for epoch in range(3):
        batches = draw(sample, sample.steps_per_epoch, start=epoch * sample.steps_per_epoch)
        single = [len(set(categories[batch])) == 1 for batch in batches]
        # 9 batches deal the three categories; 3 mix (a mixed one may by chance hold one category).
        assert sample.steps_per_epoch == 12
        assert 9 <= sum(single) < 12
        covered = labels[np.concatenate([b for b, s in zip(batches, single, strict=True) if s])]
        assert set(covered) == set(range(23))


def test_products_of_small_categories_come_in_mixed_batches():
    labels = np.repeat(np.arange(10), 2)
    categories = np.where(labels < 8, "large", "small")
    sample = pk_sampler(
        labels, products=4, images=2, seed=7, categories=categories, single_category=0.5
    )
    assert set(labels[draw(sample, 3 * sample.steps_per_epoch).ravel()]) == set(range(10))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"products": 99}, "a batch of 99 products from a table that holds 23"),
        ({"products": 5, "shard": (0, 2)}, "workers must divide products=5"),
        ({"products": 2, "single_category": 0.5}, "single_category needs the categories"),
        ({"products": 2, "single_category": 1.5}, "a share between 0 and 1, got 1.5"),
    ],
)
def test_bad_options_are_named(table, options, message):
    with pytest.raises(ValueError, match=message):
        pk_sampler(table[0], images=2, **options)
