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

# Up to this many items, a permutation is found by sorting random words.
SORTED = 256


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


def balanced_sampler(labels, *, batch_size, seed=0, shard=(0, 1)):
    """Every class equally often, however many pictures it has.

    Any C successive draws that start at a multiple of C, the number of classes, hold each class
    once, and any n successive visits of a class that start at a multiple of n, its number of
    pictures, each picture once.

    Args:
        labels: `[N]` class of each row.
        batch_size: rows in a batch.
        seed: an integer; another seed is another order.
        shard: (worker, workers); the worker gets its slice of the very same global batch.

    Returns:
        `sample(step) -> [batch_size / workers]` int64 rows.

    Raises:
        ValueError: no rows, or a shard that cannot be had.
    """
    table = _group(labels)
    classes = len(table.count)
    if not classes:
        raise ValueError("no rows to sample from")
    largest = int(table.count.max())
    mine = _slice_of_worker(batch_size, shard, "batch_size")

    def sample(step):
        draw = _as_step(step) * batch_size + mine
        visit = draw // classes
        label = _shuffled(draw % classes, classes, classes, seed, _PRODUCTS, visit)
        count = tf.gather(table.count, label)
        item = _shuffled(visit % count, count, largest, seed, _IMAGES, label, visit // count)
        return tf.gather(table.order, tf.gather(table.offset, label) + item)

    sample.steps_per_epoch = -(-classes // batch_size)
    return sample


def hierarchical_sampler(
    labels,
    categories,
    *,
    categories_per_batch,
    products,
    images,
    seed=0,
    shard=(0, 1),
):
    """Batches of some categories, of each some products, of each some pictures.

    An epoch (`sample.steps_per_epoch` steps) deals every category at least once; every product of a
    category with n of them comes within any ceil(n / products) epochs, and every picture of a
    product with m of them within ceil(m / images) times as many, from a multiple of these on. A
    category with fewer than `products` products repeats them with other pictures while it has any.

    Args:
        labels: `[N]` product of each row.
        categories: `[N]` category of each row; a product has the category of its first row.
        categories_per_batch: G, distinct categories in a batch.
        products: P, products of each.
        images: K, pictures of each product.
        seed: an integer; another seed is another order.
        shard: (worker, workers); the worker gets its slice of the very same global batch.

    Returns:
        `sample(step) -> [G * P * K / workers]` int64 rows, those of a product side by side, those
        products of a category side by side.

    Raises:
        ValueError: too few categories, or a shard that cannot be had.
    """
    table = _group(labels)
    by_category = _group(np.asarray(categories)[table.order[table.offset]])
    total = len(by_category.count)
    if not 1 <= categories_per_batch <= total:
        raise ValueError(
            f"a batch of {categories_per_batch} categories from a table that holds {total}"
        )
    mine = _slice_of_worker(categories_per_batch, shard, "categories_per_batch")

    def sample(step):
        visit, category, ahead = _handful(
            _as_step(step), 0, categories_per_batch, total, total, mine, seed, _CATEGORIES
        )
        visit, item, ahead = _handful(
            visit[:, None],
            ahead[:, None],
            products,
            tf.gather(by_category.count, category)[:, None],
            int(by_category.count.max()),
            np.arange(products),
            seed,
            _PRODUCTS,
            category[:, None],
        )
        start = tf.gather(by_category.offset, category)[:, None]
        product, visit, ahead = (
            tf.reshape(t, [-1]) for t in (tf.gather(by_category.order, start + item), visit, ahead)
        )
        dealt = _Dealt(product, visit, ahead, tf.zeros([], tf.int64))
        return tf.reshape(_deal_images(table, dealt, images, seed), [-1])

    sample.steps_per_epoch = -(-total // categories_per_batch)
    return sample


def pair_sampler(
    labels,
    domains,
    *,
    pairs,
    query="consumer",
    positive="shop",
    seed=0,
    categories=None,
    single_category=0.0,
    shard=(0, 1),
):
    """Pairs (query, positive) of distinct products, each from its own domain.

    For `mine_given_positive`. Products without a picture in both domains are left out. An epoch
    deals every product at least once, and every picture of a product with n in that domain is seen
    within any n epochs that start at a multiple of n. `categories` and `single_category` are those
    of `pk_sampler`.

    Args:
        labels: `[N]` product of each row.
        domains: `[N]` domain of each row.
        pairs: products in a batch, one pair of each.
        query, positive: the domains of the two; the same one gives two of its pictures, distinct
            where the product has two.
        seed: an integer; another seed is another order.
        categories: `[N]` category of each row.
        single_category: share of single-category batches, 0 to 1.
        shard: (worker, workers); the worker gets its slice of the pairs of the global batch.

    Returns:
        `sample(step) -> [2 * pairs / workers]` int64 rows: the queries, then their positives in the
        same order.

    Raises:
        ValueError: too few products with both domains, or a share or shard that cannot be had.
    """
    labels, domains = np.asarray(labels), np.asarray(domains)
    rows = [np.flatnonzero(domains == domain) for domain in (query, positive)]
    shared = np.intersect1d(labels[rows[0]], labels[rows[1]])
    # Both tables hold the same products in the same order.
    queries, positives = (_group(labels, r[np.isin(labels[r], shared)]) for r in rows)
    if not len(shared):
        raise ValueError(f"no product has pictures of both domains, '{query}' and '{positive}'")
    deal = _product_dealer(queries, pairs, seed, categories, single_category, shard)

    def sample(step):
        dealt = deal(_as_step(step))
        if query == positive:
            both = _deal_images(queries, dealt, 2, seed)
            return tf.reshape(tf.transpose(both), [-1])
        sides = [
            _deal_images(table, dealt, 1, seed, side)
            for side, table in enumerate((queries, positives))
        ]
        return tf.reshape(tf.concat(sides, 0), [-1])

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
    mine = _slice_of_worker(products, shard, "products")

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

    def deal(step):
        epoch = step // steps
        slot = _shuffled(step % steps, steps, steps, seed, _SLOTS, epoch)
        stream = tf.gather(slot_stream, slot)
        visit = epoch * tf.gather(slots_of, stream) + tf.gather(slot_number, slot)
        count = tf.gather(size, stream)
        cycle, item, repeat = _handful(
            visit, 0, products, count, total, mine, seed, _PRODUCTS, stream
        )
        product = tf.gather(member, tf.gather(start, stream) + item)
        # Products have a history of pictures in their category's stream and another in the mixed
        # one.
        mixed_stream = tf.cast(tf.equal(stream, len(size) - 1), tf.int64)
        return _Dealt(product, cycle, repeat, mixed_stream)

    deal.steps_per_epoch = steps
    return deal


def _slice_of_worker(size, shard, name):
    """The places of a global batch of `size` that are this worker's."""
    worker, workers = shard
    if not 0 <= worker < workers or size % workers:
        raise ValueError(
            f"shard {shard}: worker must be in [0, workers), and workers must divide {name}={size}"
        )
    return np.arange(size // workers * worker, size // workers * (worker + 1))


def _deal_images(table, dealt, images, seed, side=0):
    """`[P, images]` rows of the dealt products; `side` tells apart the pictures of two domains."""
    count = tf.gather(table.count, dealt.product)[:, None]
    _, item, _ = _handful(
        dealt.visit[:, None],
        dealt.repeat[:, None],
        images,
        count,
        int(table.count.max()),
        np.arange(images),
        seed,
        _IMAGES,
        side,
        dealt.stream,
        dealt.product[:, None],
    )
    return tf.gather(table.order, tf.gather(table.offset, dealt.product)[:, None] + item)


def _handful(visit, ahead, count, n, largest, places, *key):
    """The items at `places` of a handful of `count` out of `n`.

    Args:
        visit: the number of the handful, over all cycles.
        ahead: take the handful this many further on, within the cycle of `visit`.
        count, n: see the module's docstring; n is at most `largest`, a Python integer.
        places: `[k]` places within the handful.
        key: the key of the permutations, besides the cycle.

    Returns:
        (cycle, item `[..., k]` in [0, n), repeat `[..., k]`: how often the item came before in the
        cycle).
    """
    handfuls = -(-n // count)
    cycle = visit // handfuls
    position = (visit % handfuls + ahead) * count + places
    item = _shuffled(position % n, n, largest, *key, cycle)
    return tf.broadcast_to(cycle, tf.shape(item)), item, position // n


def _shuffled(index, n, largest, *key):
    """`permutation[index]` of the permutation of range(n) that belongs to the key; all broadcast.

    Args:
        index: in [0, n).
        n: sizes; at most `largest`, a Python integer.
        key: integers or integer tensors.
    """
    n = tf.cast(n, tf.int64)
    low, high = _random_words(*key)
    index = tf.broadcast_to(
        tf.cast(index, tf.int64),
        _broadcast_shape(tf.shape(index), tf.shape(n), tf.shape(low)),
    )
    small = _shuffled_by_sorting(index, n, min(largest, SORTED), low)
    if largest <= SORTED:
        return small
    return tf.where(n <= SORTED, small, _shuffled_by_cipher(index, n, low, high))


def _shuffled_by_sorting(index, n, width, word):
    """The permutation that sorts one random word an item; O(width) for each key."""
    items = tf.range(width, dtype=tf.int64)
    words = _mix(word[..., None] + tf.cast(items, tf.uint64))
    words = tf.where(items < n[..., None], tf.cast(_shift(words, 1), tf.int64), -1)
    permutation = tf.math.top_k(words, width).indices
    shape = tf.concat([tf.shape(index), [width]], 0)
    index = tf.minimum(index, width - 1)  # rows that the cipher answers may point beyond
    chosen = tf.gather(
        tf.broadcast_to(permutation, shape), index[..., None], batch_dims=index.shape.rank
    )
    return tf.cast(chosen[..., 0], tf.int64)


def _shuffled_by_cipher(index, n, low, high):
    """RandomIndexShuffle: O(1) an index for a large n.

    It walks a cycle of 2^16 places for a small n (hence the sorting), and keeps only some 23 bits
    of
    its seed: a rotation before and after it, from the same key, adds the others.
    """
    n = tf.where(n > SORTED, n, 2**16)  # not to walk where the answer is not used
    words = [tf.cast(word, tf.uint32) for word in (low, _shift(low, 32), high)]
    rotation = tf.cast(_shift(high, 32), tf.int64)
    shape = tf.shape(index)
    seed = tf.stack([tf.reshape(tf.broadcast_to(word, shape), [-1]) for word in words], 1)
    shuffled = tf.raw_ops.RandomIndexShuffle(
        index=tf.reshape((index + rotation) % n, [-1]),
        seed=seed,
        max_index=tf.reshape(tf.broadcast_to(n - 1, shape), [-1]),
        rounds=8,
    )
    return (tf.reshape(shuffled, shape) + rotation // n) % n


def _broadcast_shape(first, *others):
    for other in others:
        first = tf.broadcast_dynamic_shape(first, other)
    return first


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
