"""Samplers: which rows of a product table make up the batch of a step.

A sampler is a pure function of (seed, step): `sample(step) -> int64 row indices`. The step is the
whole state, so a run resumes exactly, at any number of workers, by `tf.data.Dataset.range(start,
...).map(sample)`. Nothing is drawn with replacement: each level (category, product, image) walks
through keyed permutations, which is what makes coverage provable.

Handfuls. `count` of `n` items are dealt as handfuls: cycle c deals one permutation of the n items
in ceil(n / count) handfuls, and the last handful wraps round to the first items of the same
permutation. Hence a handful never repeats an item while n >= count, and every cycle deals every
item.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

# What a random number is for; part of its key, so that no two uses share a stream.
_SLOTS, _CATEGORIES, _PRODUCTS, _IMAGES = range(4)


def pk_sampler(
    labels,
    *,
    products,
    images,
    seed=0,
    categories=None,
    single_category=0.0,
    min_images=1,
    shard=(0, 1),
):
    """P x K batches: `products` distinct products with `images` pictures each.

    An epoch (`sample.steps_per_epoch` steps) deals every product at least once, and every picture
    of a product with n pictures is seen within any ceil(n / images) epochs that start at a multiple
    of it. No picture repeats within a batch while its product has `images` of them.

    With `categories`, a share `single_category` of the batches (arXiv 1810.04652 draws 0.8 of them
    so) holds products of one category only, in which the negatives are hard; the others mix all.
    The share is kept in every epoch, up to rounding. A category with fewer than `products` products
    appears in mixed batches only.

    Args:
        labels: `[N]` product of each row, any dtype that NumPy sorts.
        products: P, distinct products in a batch.
        images: K, pictures of each.
        seed: an integer; another seed is another order.
        categories: `[N]` category of each row; a product has the category of its first row.
        single_category: share of single-category batches, 0 to 1.
        min_images: products with fewer pictures are left out.
        shard: (worker, workers); the worker gets its slice of the very same global batch.

    Returns:
        `sample(step) -> [P * K / workers]` int64 rows, the K pictures of a product side by side.

    Raises:
        ValueError: too few products, or a share or shard that cannot be had.
    """
    table = _group(labels, min_images=min_images)
    deal = _product_dealer(table, products, seed, categories, single_category, shard)

    def sample(step):
        dealt = deal(_as_step(step))
        return tf.reshape(_deal_images(table, dealt, images, seed), [-1])

    sample.steps_per_epoch = deal.steps_per_epoch
    return sample


class _Table(NamedTuple):
    """Rows by product: product p has the rows `order[offset[p] : offset[p] + count[p]]`."""

    order: np.ndarray
    offset: np.ndarray
    count: np.ndarray


class _Dealt(NamedTuple):
    """Products dealt at a step, `[P]` each: which, and where in the history of each that is."""

    product: tf.Tensor
    visit: tf.Tensor
    repeat: tf.Tensor
    stream: tf.Tensor


def _group(labels, rows=None, min_images=1):
    """Groups `rows` (all of them when None) by label, in the order of labels and of rows."""
    labels = np.asarray(labels)
    rows = np.arange(len(labels)) if rows is None else np.asarray(rows)
    _, codes, count = np.unique(labels[rows], return_inverse=True, return_counts=True)
    order = rows[np.argsort(codes, kind="stable")]
    offset = np.cumsum(count) - count
    keep = count >= min_images
    return _Table(order, offset[keep], count[keep])


def _product_dealer(table, products, seed, categories, single_category, shard):
    """`deal(step) -> _Dealt` of this worker's share of `products` distinct products."""
    total = len(table.count)
    if not 1 <= products <= total:
        raise ValueError(f"a batch of {products} products from a table that holds {total}")
    if not 0 <= single_category <= 1:
        raise ValueError(f"single_category is a share between 0 and 1, got {single_category}")
    if single_category and categories is None:
        raise ValueError("single_category needs the categories of the rows")
    worker, workers = shard
    if not 0 <= worker < workers or products % workers:
        raise ValueError(
            f"shard {shard}: worker must be in [0, workers), and workers must divide "
            f"products={products}"
        )

    # Streams: one a category that can fill a batch, and the last one mixes all products. `member`
    # lists the products stream by stream.
    member, size = [], []
    if single_category:
        first_rows = table.order[table.offset]
        by_category = _group(np.asarray(categories)[first_rows], min_images=products)
        if not len(by_category.count):
            raise ValueError(f"no category holds {products} products, as single_category needs")
        for offset, count in zip(by_category.offset, by_category.count, strict=True):
            member.append(by_category.order[offset : offset + count])
            size.append(count)
    singles = sum(-(-count // products) for count in size)
    if single_category:
        mixed = round(singles * (1 - single_category) / single_category)
    else:
        mixed = -(-total // products)
    member = np.concatenate([*member, np.arange(total)])
    size = np.array([*size, total])
    start = np.cumsum(size) - size
    slots_of = np.array([*(-(-count // products) for count in size[:-1]), mixed])
    # An epoch is a fixed multiset of slots (one batch each), dealt in an order keyed by the epoch.
    slot_stream = np.repeat(np.arange(len(size)), slots_of)
    slot_number = np.concatenate([np.arange(n) for n in slots_of])
    steps = len(slot_stream)
    mine = np.arange(products)[products // workers * worker : products // workers * (worker + 1)]

    def deal(step):
        epoch = step // steps
        slot = _shuffled(step % steps, steps, seed, _SLOTS, epoch)
        stream = tf.gather(slot_stream, slot)
        visit = epoch * tf.gather(slots_of, stream) + tf.gather(slot_number, slot)
        count = tf.gather(size, stream)
        cycle, item, repeat = _handful(visit, 0, products, count, mine, seed, _PRODUCTS, stream)
        product = tf.gather(member, tf.gather(start, stream) + item)
        # Products have a history of pictures in their category's stream and another in the mixed
        # one.
        mixed_stream = tf.cast(tf.equal(stream, len(size) - 1), tf.int64)
        return _Dealt(product, cycle, repeat, mixed_stream)

    deal.steps_per_epoch = steps
    return deal


def _deal_images(table, dealt, images, seed):
    """`[P, images]` rows of the dealt products."""
    count = tf.gather(table.count, dealt.product)[:, None]
    _, item, _ = _handful(
        dealt.visit[:, None],
        dealt.repeat[:, None],
        images,
        count,
        np.arange(images),
        seed,
        _IMAGES,
        dealt.stream,
        dealt.product[:, None],
    )
    return tf.gather(table.order, tf.gather(table.offset, dealt.product)[:, None] + item)


def _handful(visit, ahead, count, n, places, *key):
    """The items at `places` of a handful of `count` out of `n`.

    Args:
        visit: the number of the handful, over all cycles.
        ahead: take the handful this many further on, within the cycle of `visit`.
        count, n: see the module's docstring.
        places: `[k]` places within the handful.
        key: the key of the permutations, besides the cycle.

    Returns:
        (cycle, item `[..., k]` in [0, n), repeat `[..., k]`: how often the item came before in the
        cycle).
    """
    handfuls = -(-n // count)
    cycle = visit // handfuls
    position = (visit % handfuls + ahead) * count + places
    item = _shuffled(position % n, n, *key, cycle)
    return tf.broadcast_to(cycle, tf.shape(item)), item, position // n


def _shuffled(index, n, *key):
    """`permutation[index]` of the permutation of range(n) that belongs to the key; all broadcast.

    RandomIndexShuffle costs O(1) an index, but keeps only some 23 bits of its seed and is biased
    for a small n; a rotation before and after it, from the same key, mends both.
    """
    low, high = _random_words(*key)
    seed = tf.stack([tf.cast(word, tf.uint32) for word in (low, _shift(low, 32), high)], -1)
    rotation = tf.cast(_shift(high, 32), tf.int64)
    n = tf.cast(n, tf.int64)
    index = (tf.cast(index, tf.int64) + rotation) % n
    shape = tf.shape(index)
    shuffled = tf.raw_ops.RandomIndexShuffle(
        index=tf.reshape(index, [-1]),
        seed=tf.reshape(tf.broadcast_to(seed, tf.concat([shape, [3]], 0)), [-1, 3]),
        max_index=tf.reshape(tf.broadcast_to(n - 1, shape), [-1]),
        rounds=8,
    )
    return (tf.reshape(shuffled, shape) + rotation // n) % n


def _random_words(*key):
    """Two uint64 words hashed from integers: splitmix64 (Steele, Lea, Flood 2014) over the key."""
    word = tf.zeros([], tf.uint64)
    for part in key:
        part = tf.cast(part, tf.uint64) if tf.is_tensor(part) else part % 2**64
        word = _mix(word + part)
    return word, _mix(word)


def _mix(word):
    word += 0x9E3779B97F4A7C15
    word = tf.bitwise.bitwise_xor(word, _shift(word, 30)) * 0xBF58476D1CE4E5B9
    word = tf.bitwise.bitwise_xor(word, _shift(word, 27)) * 0x94D049BB133111EB
    return tf.bitwise.bitwise_xor(word, _shift(word, 31))


def _shift(word, bits):
    return tf.bitwise.right_shift(word, tf.constant(bits, tf.uint64))


def _as_step(step):
    return tf.cast(tf.convert_to_tensor(step), tf.int64)
