import numpy as np
import pytest
import tensorflow as tf

from metriclearn import balanced_sampler, hierarchical_sampler, pair_sampler, pk_sampler, samplers


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


def test_pk_batches_hold_distinct_products_and_images(table):
    labels, _ = table
    for batch in draw(pk_sampler(labels, products=5, images=3, seed=1), 40):
        products = labels[batch].reshape(5, 3)
        assert (products == products[:, :1]).all()
        assert len(set(products[:, 0])) == 5
        for product, rows in zip(products[:, 0], batch.reshape(5, 3), strict=True):
            assert len(set(rows)) == min(3, (labels == product).sum())


def test_pk_epoch_covers_all_products_then_all_images(table):
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
        ({"products": 99}, "a batch of 99 products from a table that has 23"),
        ({"products": 5, "shard": (0, 2)}, "workers must divide products=5"),
        ({"products": 2, "single_category": 0.5}, "single_category needs the categories"),
        ({"products": 2, "single_category": 1.5}, "a share between 0 and 1: 1.5"),
    ],
)
def test_bad_options_are_named(table, options, message):
    with pytest.raises(ValueError, match=message):
        pk_sampler(table[0], images=2, **options)


def test_balanced_draws_are_exactly_balanced():
    labels = np.repeat(np.arange(4), [1, 3, 10, 50])
    sample = balanced_sampler(labels, batch_size=6, seed=1)
    drawn = draw(sample, 100).ravel()  # 150 visits of each class
    np.testing.assert_array_equal(np.bincount(labels[drawn]), [150] * 4)
    for label, size in enumerate([1, 3, 10, 50]):
        visits = drawn[labels[drawn] == label].reshape(-1, size)
        assert all(len(set(cycle)) == size for cycle in visits)
    parts = [draw(balanced_sampler(labels, batch_size=6, seed=1, shard=(w, 2)), 9) for w in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), draw(sample, 9))


def test_hierarchical_batches_nest_and_cover(table):
    labels, categories = table
    options = {"categories_per_batch": 2, "products": 3, "images": 2, "seed": 2}
    sample = hierarchical_sampler(labels, categories, **options)
    cycles = 3 * 6  # ceil(8 / 3) visits deal the products of a category; 6 deal all images
    largest = np.bincount(labels).max()
    assert largest <= 12
    batches = draw(sample, sample.steps_per_epoch * cycles)
    for batch in batches:
        nested = labels[batch].reshape(2, 3, 2)
        assert (nested == nested[..., :1]).all()
        of_category = categories[batch].reshape(2, 6)
        assert (of_category == of_category[:, :1]).all()
        assert of_category[0, 0] != of_category[1, 0]
        assert all(len(set(products)) == 3 for products in nested[..., 0])
    assert set(batches.ravel()) == set(range(len(labels)))
    other = dict(options, shard=(1, 2))
    np.testing.assert_array_equal(
        draw(hierarchical_sampler(labels, categories, **other), 5), batches[:5, 6:]
    )


def test_small_categories_repeat_products_with_other_images():
    labels, categories = np.repeat([0, 1], 4), np.zeros(8)
    sample = hierarchical_sampler(
        labels, categories, categories_per_batch=1, products=4, images=2, seed=3
    )
    for batch in draw(sample, 10):
        assert sorted(batch) == list(range(8))


def test_pairs_cross_the_domains_and_cover_both():
    rng = np.random.default_rng(4)
    labels = np.concatenate([np.arange(10), np.arange(10), rng.integers(0, 10, 40), [90, 91]])
    domains = np.array(["consumer"] * 10 + ["shop"] * 10 + ["consumer", "shop"] * 20 + ["shop"] * 2)
    sample = pair_sampler(labels, domains, pairs=4, seed=5)
    assert sample.steps_per_epoch == 3
    largest = max(np.bincount(labels[domains == d]).max() for d in ("consumer", "shop"))
    batches = draw(sample, 3 * int(np.lcm.reduce(np.arange(1, largest + 1))) // 2)
    for batch in batches[:50]:
        queries, positives = batch[:4], batch[4:]
        np.testing.assert_array_equal(labels[queries], labels[positives])
        assert len(set(labels[queries])) == 4
        assert set(domains[queries]) == {"consumer"}
        assert set(domains[positives]) == {"shop"}
    assert set(batches.ravel()) == set(range(60))
    same = draw(pair_sampler(labels, domains, pairs=4, query="shop", positive="shop"), 5)
    counts = np.bincount(labels[domains == "shop"])
    for batch in same:
        for query, positive in zip(batch[:4], batch[4:], strict=True):
            assert labels[query] == labels[positive]
            assert query != positive or counts[labels[query]] == 1


def test_first_places_are_uniform_over_steps():
    """The shuffle itself: of 2 and of 3 items each comes first equally often."""
    for size in 2, 3:
        labels = np.arange(size)
        first = draw(pk_sampler(labels, products=size, images=1, seed=6), 6000)[:, 0]
        np.testing.assert_allclose(np.bincount(first) / 6000, 1 / size, atol=0.025)


def test_no_shared_domain_is_named():
    with pytest.raises(ValueError, match="no product has images of both domains, 'consumer'"):
        pair_sampler([1, 2], ["consumer", "shop"], pairs=1)
    with pytest.raises(ValueError, match="a batch of 3 categories from a table that has 1"):
        hierarchical_sampler([1, 2], ["a", "a"], categories_per_batch=3, products=1, images=1)


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda n: pk_sampler([0, 1], products=n, images=1), "products"),
        (lambda n: pk_sampler([0, 1], products=1, images=n), "images"),
        (lambda n: pk_sampler([0, 1], products=1, images=1, min_images=n), "min_images"),
        (lambda n: balanced_sampler([0, 1], batch_size=n), "batch_size"),
        (lambda n: pair_sampler([0, 1], ["x", "x"], pairs=n, query="x", positive="x"), "pairs"),
        (
            lambda n: hierarchical_sampler(
                [0, 1], [0, 1], categories_per_batch=n, products=1, images=1
            ),
            "categories_per_batch",
        ),
    ],
)
def test_counts_below_one_are_named(make, name):
    for count in 0, -2:
        with pytest.raises(ValueError, match=f"{name}={count} must be at least 1"):
            make(count)


def test_a_large_table_stays_outside_the_graph(monkeypatch):
    """With the same batches."""
    labels = np.repeat(np.arange(500), 6)
    categories = labels // 50

    def run():
        with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
            sample = pk_sampler(
                labels, products=4, images=3, seed=1, categories=categories, single_category=0.5
            )
            rows = session.run([sample(tf.constant(step, tf.int64)) for step in range(5)])
            return np.array(rows), graph.as_graph_def().ByteSize()

    rows, size = run()
    monkeypatch.setattr(samplers, "LARGEST_CONSTANT", 0)
    outside, smaller = run()
    np.testing.assert_array_equal(rows, outside)
    assert smaller < size
