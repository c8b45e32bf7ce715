"""Samplers choose the rows of a product table for the batch of a step.

A sampler is a pure function of (seed, step): `sample(step) -> int64 row indices`. The step is the
whole state, so a run resumes exactly, with any number of workers, by `tf.data.Dataset.range(start,
...).map(sample)`. Items are drawn without replacement: each level (category, product, image)
follows keyed permutations, which guarantees coverage.

Hands. `size` of `total` items are dealt as hands: a cycle deals one permutation of the items in
ceil(total / size) hands, and the last hand wraps around to the first items of the same permutation.
Hence a hand never repeats an item while total >= size, and every cycle deals every item.

Labels, categories and domains are `[N]` or `[N, 1]` integers, strings, bools or whole floats, see
`metriclearn.inputs`.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from metriclearn.hashing import next_word, right_shift, word_of
from metriclearn.inputs import TensorLike, label_array

# The use of a random number. It is part of the key, so that uses do not share a stream.
_SLOTS, _CATEGORIES, _PRODUCTS, _IMAGES = range(4)

# Up to this number of items, a permutation is computed by sorting random words.
SORTED = 256


class Sampler(Protocol):
    """The type of samplers: `sample(step)`, with the number of steps in an epoch."""

    steps_per_epoch: int

    def __call__(self, step: TensorLike) -> tf.Tensor:
        """Returns the int64 rows of the batch of a step, an integer or int64 scalar."""


def pk_sampler(
    labels: Any,
    *,
    products: int,
    images: int,
    seed: int = 0,
    categories: Any = None,
    single_category: float = 0.0,
    min_images: int = 1,
    shard: tuple[int, int] = (0, 1),
) -> Sampler:
    """P x K batches: `products` distinct products with `images` images each.

    An epoch (`sample.steps_per_epoch` steps) draws every product at least once. Every image of a
    product with n images appears within any ceil(n / images) epochs that start at a multiple of
    that. No image repeats within a batch if its product has at least `images` images.

    With `categories`, a fraction `single_category` of the batches (0.8 in arXiv 1810.04652) has
    products of only one category, where negatives are hard; the others mix all categories. Every
    epoch has this fraction, up to rounding. A category with fewer than `products` products appears
    only in mixed batches.

    Args:
        labels: `[N]` product of each row.
        products: P, distinct products per batch.
        images: K, images per product.
        seed: an integer; another seed gives another order.
        categories: `[N]` category of each row; a product has the category of its first row.
        single_category: share of single-category batches, 0 to 1.
        min_images: products with fewer images are skipped.
        shard: (worker, workers); the worker gets its slice of the same global batch.

    Returns:
        `sample(step) -> [P * K / workers]` int64 rows, the K images of a product side by side.

    Raises:
        ValueError: too few products, illegal labels, or an impossible count, share or shard.
    """
    _check_counts(products=products, images=images, min_images=min_images)
    labels = label_array(labels)
    table = _group(labels, min_images=min_images)
    categories = _optional(categories, len(labels))
    dealer = _ProductDealer.make(table, products, seed, categories, single_category, shard)

    def sample(step: TensorLike) -> tf.Tensor:
        return tf.reshape(_deal_images(table, dealer.deal(_as_step(step)), images, seed), [-1])

    return _with_epoch(sample, dealer.steps_per_epoch)


def balanced_sampler(
    labels: Any, *, batch_size: int, seed: int = 0, shard: tuple[int, int] = (0, 1)
) -> Sampler:
    """Draws every product equally often, independent of its number of images.

    Let C be the number of products. Any C successive draws that start at a multiple of C contain
    each product once. Any n successive draws of a product with n images, from a multiple of n on,
    contain each image once.

    Args:
        labels: `[N]` product of each row.
        batch_size: rows per batch.
        seed: an integer; another seed gives another order.
        shard: (worker, workers); the worker gets its slice of the same global batch.

    Returns:
        `sample(step) -> [batch_size / workers]` int64 rows.

    Raises:
        ValueError: no rows, illegal labels, or an impossible batch size or shard.
    """
    _check_counts(batch_size=batch_size)
    table = _group(label_array(labels))
    products = len(table.size)
    if not products:
        raise ValueError("no rows to sample from")
    largest = int(table.size.max())
    places = _slice_of_worker(batch_size, shard, "batch_size")

    def sample(step: TensorLike) -> tf.Tensor:
        draw = _as_step(step) * batch_size + places  # [B], numbered over all steps
        visit = draw // products
        product = _shuffled(draw % products, products, products, seed, _PRODUCTS, visit)
        count = _take(table.size, product)
        item = _shuffled(visit % count, count, largest, seed, _IMAGES, product, visit // count)
        return _take(table.order, _take(table.offset, product) + item)

    return _with_epoch(sample, -(-products // batch_size))


def hierarchical_sampler(
    labels: Any,
    categories: Any,
    *,
    categories_per_batch: int,
    products: int,
    images: int,
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Sampler:
    """Batches of some categories, some products per category, some images per product.

    An epoch (`sample.steps_per_epoch` steps) draws every category at least once. Every product of a
    category with n products appears within ceil(n / products) epochs, and every image of a product
    with m images within ceil(m / images) times as many, starting at a multiple of these. A category
    with fewer than `products` products repeats them, with other images if possible.

    Args:
        labels: `[N]` product of each row.
        categories: `[N]` category of each row; a product has the category of its first row.
        categories_per_batch: G, distinct categories per batch.
        products: P, products per category.
        images: K, images per product.
        seed: an integer; another seed gives another order.
        shard: (worker, workers); the worker gets its slice of the same global batch.

    Returns:
        `sample(step) -> [G * P * K / workers]` int64 rows; the images of a product are adjacent,
        and so are the products of a category.

    Raises:
        ValueError: too few categories, illegal labels, or an impossible count or shard.
    """
    _check_counts(categories_per_batch=categories_per_batch, products=products, images=images)
    labels = label_array(labels)
    table = _group(labels)
    # A product has the category of its first row.
    categories = label_array(categories, "categories", len(labels))
    by_category = _group(categories[table.order[table.offset]])
    total = len(by_category.size)
    if categories_per_batch > total:
        raise ValueError(
            f"a batch of {categories_per_batch} categories from a table that has {total}"
        )
    groups = _Deck(
        categories_per_batch,
        total,
        _slice_of_worker(categories_per_batch, shard, "categories_per_batch"),
    )
    largest, places = int(by_category.size.max()), np.arange(products)

    def sample(step: TensorLike) -> tf.Tensor:
        category = groups.hand(_as_step(step), 0, total, seed, _CATEGORIES)  # [G]
        product = _Deck(products, largest, places).hand(
            category.cycle[:, None],
            category.repeat[:, None],
            _take(by_category.size, category.item)[:, None],
            seed,
            _PRODUCTS,
            category.item[:, None],
        )  # [G, P]
        start = _take(by_category.offset, category.item)[:, None]
        dealt = _Dealt(
            tf.reshape(_take(by_category.order, start + product.item), [-1]),
            tf.reshape(product.cycle, [-1]),
            tf.reshape(product.repeat, [-1]),
            tf.zeros([], tf.int64),
        )  # [G * P]
        return tf.reshape(_deal_images(table, dealt, images, seed), [-1])

    return _with_epoch(sample, -(-total // categories_per_batch))


def pair_sampler(
    labels: Any,
    domains: Any,
    *,
    pairs: int,
    query: Any = "consumer",
    positive: Any = "shop",
    seed: int = 0,
    categories: Any = None,
    single_category: float = 0.0,
    shard: tuple[int, int] = (0, 1),
) -> Sampler:
    """Pairs (query, positive) of distinct products, each from its own domain.

    For `mine_given_positive`. Products without an image in both domains are skipped. An epoch draws
    every product at least once, and every image of a product with n in that domain appears within
    any n epochs that start at a multiple of n. `categories` and `single_category` are those of
    `pk_sampler`.

    Args:
        labels: `[N]` product of each row.
        domains: `[N]` domain of each row.
        pairs: products per batch, one pair per product.
        query, positive: their domains. If both are the same domain, the images are distinct if the
            product has two.
        seed: an integer; another seed gives another order.
        categories: `[N]` category of each row.
        single_category: share of single-category batches, 0 to 1.
        shard: (worker, workers); the worker gets its slice of the pairs of the global batch.

    Returns:
        `sample(step) -> [2 * pairs / workers]` int64 rows: the queries, then their positives in the
        same order.

    Raises:
        ValueError: too few products with both domains, illegal labels, or an impossible count,
            share or shard.
    """
    _check_counts(pairs=pairs)
    labels = label_array(labels)
    domains = label_array(domains, "domains", len(labels))
    rows = [np.flatnonzero(domains == domain) for domain in (query, positive)]
    shared = np.intersect1d(labels[rows[0]], labels[rows[1]])
    if not len(shared):
        raise ValueError(f"no product has images of both domains, '{query}' and '{positive}'")
    # Both tables have the same products in the same order.
    queries, positives = (_group(labels, r[np.isin(labels[r], shared)]) for r in rows)
    categories = _optional(categories, len(labels))
    dealer = _ProductDealer.make(queries, pairs, seed, categories, single_category, shard)

    def sample(step: TensorLike) -> tf.Tensor:
        dealt = dealer.deal(_as_step(step))
        if query == positive:
            both = _deal_images(queries, dealt, 2, seed)  # [pairs, 2]
            return tf.reshape(tf.transpose(both), [-1])
        sides = [
            _deal_images(table, dealt, 1, seed, side)  # [pairs, 1]
            for side, table in enumerate((queries, positives))
        ]
        return tf.reshape(tf.concat(sides, 0), [-1])

    return _with_epoch(sample, dealer.steps_per_epoch)


def _with_epoch(sample: Any, steps_per_epoch: int) -> Sampler:
    sample.steps_per_epoch = steps_per_epoch
    return sample


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")


def _optional(categories: Any, count: int) -> np.ndarray | None:
    return None if categories is None else label_array(categories, "categories", count)


def _as_step(step: TensorLike) -> tf.Tensor:
    return tf.cast(tf.convert_to_tensor(step), tf.int64)


def _slice_of_worker(size: int, shard: tuple[int, int], name: str) -> np.ndarray:
    """This worker's positions in a global batch of `size`."""
    worker, workers = shard
    if not 0 <= worker < workers or size % workers:
        raise ValueError(
            f"shard {shard}: worker must be in [0, workers), and workers must divide {name}={size}"
        )
    return np.arange(size // workers * worker, size // workers * (worker + 1))


LARGEST_CONSTANT = 1 << 18  # maximum size of an array that is stored in the graph


def _take(values: np.ndarray, index: tf.Tensor) -> tf.Tensor:
    """values[index]; a large array is kept outside the graph."""
    if values.size <= LARGEST_CONSTANT:
        return tf.gather(values, index)
    found = tf.numpy_function(lambda i: values[i], [index], values.dtype, stateful=False)
    return tf.ensure_shape(found, index.shape)


class _Table(NamedTuple):
    """Rows by product: product p has the rows `order[offset[p] : offset[p] + size[p]]`."""

    order: np.ndarray
    offset: np.ndarray
    size: np.ndarray


def _group(labels: np.ndarray, rows: np.ndarray | None = None, min_images: int = 1) -> _Table:
    """Groups `rows` (all of them if None) by label, in the order of labels and of rows."""
    values = labels if rows is None else labels[rows]
    by = np.argsort(values, kind="stable")
    values = values[by]  # one sort; np.unique needs a second one and three times the memory
    is_first = np.append([True], values[1:] != values[:-1])[: len(by)]
    offset = np.flatnonzero(is_first)
    count = np.diff(offset, append=len(by))
    keep = count >= min_images
    return _Table(by if rows is None else rows[by], offset[keep], count[keep])


class _Dealt(NamedTuple):
    """Products dealt at a step, `[P]` each, and the position in each product's history."""

    product: tf.Tensor
    cycle: tf.Tensor
    repeat: tf.Tensor
    history: tf.Tensor  # scalar: each product has one history of images per value


def _deal_images(table: _Table, dealt: _Dealt, images: int, seed: int, side: int = 0) -> tf.Tensor:
    """`[P, images]` rows of the dealt products; `side` separates the images of two domains."""
    deck = _Deck(images, int(table.size.max()), np.arange(images))
    item = deck.hand(
        dealt.cycle[:, None],
        dealt.repeat[:, None],
        _take(table.size, dealt.product)[:, None],
        seed,
        _IMAGES,
        side,
        dealt.history,
        dealt.product[:, None],
    ).item
    return _take(table.order, _take(table.offset, dealt.product)[:, None] + item)


@dataclasses.dataclass(frozen=True)
class _ProductDealer:
    """Deals distinct products per step from streams: one per category, and a mixed one.

    Attributes:
        deck: the products of this worker in a batch.
        seed: the sampler's seed.
        members: products, stream by stream; the last stream has all.
        start: `[S]` start of each stream in `members`.
        count: `[S]` number of products per stream.
        slots: `[S]` number of batches per stream in an epoch.
    """

    deck: "_Deck"
    seed: int
    members: np.ndarray
    start: np.ndarray
    count: np.ndarray
    slots: np.ndarray

    @classmethod
    def make(
        cls,
        table: _Table,
        products: int,
        seed: int,
        categories: np.ndarray | None,
        single_category: float,
        shard: tuple[int, int],
    ) -> "_ProductDealer":
        """The dealer of this worker's share of `products` distinct products of a table."""
        total = len(table.size)
        if products > total:
            raise ValueError(f"a batch of {products} products from a table that has {total}")
        if not 0 <= single_category <= 1:
            raise ValueError(f"single_category must be a share between 0 and 1: {single_category}")
        members, counts = [], []
        if single_category:
            if categories is None:
                raise ValueError("single_category needs the categories of the rows")
            by_category = _group(categories[table.order[table.offset]], min_images=products)
            if not len(by_category.size):
                raise ValueError(f"no category has the {products} products that a batch needs")
            for offset, count in zip(by_category.offset, by_category.size, strict=True):
                members.append(by_category.order[offset : offset + count])
                counts.append(int(count))
        slots = [-(-count // products) for count in counts]
        if single_category:
            mixed = round(sum(slots) * (1 - single_category) / single_category)
        else:
            mixed = -(-total // products)
        count = np.array([*counts, total])
        places = _slice_of_worker(products, shard, "products")
        return cls(
            _Deck(products, total, places),
            seed,
            np.concatenate([*members, np.arange(total)]),
            np.cumsum(count) - count,
            count,
            np.array([*slots, mixed]),
        )

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return int(self.slots.sum())

    def deal(self, step: tf.Tensor) -> _Dealt:
        """The products of a step, an int64 scalar."""
        # An epoch is a fixed multiset of slots (one batch each), dealt in an order keyed by the
        # epoch.
        steps, streams = self.steps_per_epoch, len(self.count)
        stream_of = np.repeat(np.arange(streams), self.slots)  # [steps]
        number_of = np.concatenate([np.arange(n) for n in self.slots])  # [steps]
        epoch = step // steps
        slot = _shuffled(step % steps, steps, steps, self.seed, _SLOTS, epoch)
        stream = _take(stream_of, slot)
        visit = epoch * _take(self.slots, stream) + _take(number_of, slot)
        count = _take(self.count, stream)
        hand = self.deck.hand(visit, 0, count, self.seed, _PRODUCTS, stream)  # [P]
        product = _take(self.members, _take(self.start, stream) + hand.item)
        # A product has a history of images in its category's stream, and another in the mixed one.
        is_mixed = tf.cast(tf.equal(stream, streams - 1), tf.int64)
        return _Dealt(product, hand.cycle, hand.repeat, is_mixed)


class _Hand(NamedTuple):
    """Items of a hand, each of the shape `[..., k]`.

    Attributes:
        item: in [0, total).
        cycle: the cycle that the hand belongs to.
        repeat: how often the item occurred before in that cycle.
    """

    item: tf.Tensor
    cycle: tf.Tensor
    repeat: tf.Tensor


class _Deck(NamedTuple):
    """How hands are dealt; see the module.

    Attributes:
        size: items per hand.
        largest: the largest number of items in total.
        places: `[k]` the places within the hand to return.
    """

    size: int
    largest: int
    places: np.ndarray

    def hand(self, visit: Any, ahead: Any, total: Any, *key: Any) -> _Hand:
        """Deals a hand of `size` out of `total` items.

        Args:
            visit: the number of the hand, counted over all cycles.
            ahead: skip this many hands, within the cycle of `visit`.
            total: number of items.
            key: integers or integer tensors, the key of the permutations besides the cycle.
        """
        hands = -(-total // self.size)
        cycle = visit // hands
        position = (visit % hands + ahead) * self.size + self.places
        item = _shuffled(position % total, total, self.largest, *key, cycle)
        return _Hand(item, tf.broadcast_to(cycle, tf.shape(item)), position // total)


# ---------------------------------------------------------------------------- permutations


def _shuffled(index: Any, total: Any, largest: int, *key: Any) -> tf.Tensor:
    """`permutation[index]` of the permutation of range(total) that belongs to the key.

    Args:
        index: in [0, total).
        total: the permutation's length, at most `largest`.
        largest: bounds all `total`.
        key: integers or integer tensors. All arguments broadcast.
    """
    total = tf.cast(total, tf.int64)
    word = word_of(*key)
    shape = tf.shape(index)
    for other in (total, word):
        shape = tf.broadcast_dynamic_shape(shape, tf.shape(other))
    index = tf.broadcast_to(tf.cast(index, tf.int64), shape)
    small = _shuffled_by_sorting(index, total, min(largest, SORTED), word)
    if largest <= SORTED:
        return small
    return tf.where(total <= SORTED, small, _shuffled_by_cipher(index, total, word))


def _shuffled_by_sorting(
    index: tf.Tensor, total: tf.Tensor, width: int, word: tf.Tensor
) -> tf.Tensor:
    """The permutation that sorts one random word per item; O(width) per key."""
    items = tf.range(width, dtype=tf.int64)  # [width]
    words = next_word(word[..., None] + tf.cast(items, tf.uint64))  # [..., width]
    words = tf.where(items < total[..., None], tf.cast(right_shift(words, 1), tf.int64), -1)
    permutation = tf.math.top_k(words, width).indices  # [..., width]
    permutation = tf.broadcast_to(permutation, tf.concat([tf.shape(index), [width]], 0))
    index = tf.minimum(index, width - 1)  # indices permuted by the cipher may be beyond it
    chosen = tf.gather(permutation, index[..., None], batch_dims=index.shape.rank)
    return tf.cast(chosen[..., 0], tf.int64)


def _shuffled_by_cipher(index: tf.Tensor, total: tf.Tensor, word: tf.Tensor) -> tf.Tensor:
    """RandomIndexShuffle: O(1) per index for a large total.

    For a small total it walks a cycle of 2^16 positions, so sorting is used there. It uses only
    about 23 bits of its seed; a rotation before and after it, from the same key, adds the others.
    """
    total = tf.where(total > SORTED, total, 2**16)  # no walk if the result is not used
    second = next_word(word)
    words = [tf.cast(part, tf.uint32) for part in (word, right_shift(word, 32), second)]
    rotation = tf.cast(right_shift(second, 32), tf.int64)
    shape = tf.shape(index)
    seed = tf.stack([tf.reshape(tf.broadcast_to(part, shape), [-1]) for part in words], 1)
    shuffled = tf.raw_ops.RandomIndexShuffle(
        index=tf.reshape((index + rotation) % total, [-1]),
        seed=seed,
        max_index=tf.reshape(tf.broadcast_to(total - 1, shape), [-1]),
        rounds=8,
    )
    return (tf.reshape(shuffled, shape) + rotation // total) % total
