"""Which rows of a matrix are equal."""

import tensorflow as tf

from metriclearn import hashing


def distinct_rows(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds the distinct rows of `[N, D]`. A NaN equals nothing.

    Returns:
        (firsts `[U]` int32, the first occurrence of each distinct row, ascending; places `[N]`
        int32, for each row the index in `firsts` of the equal row).
    """
    rows = tf.range(tf.shape(x)[0])

    def by_hash() -> tuple[tf.Tensor, tf.Tensor]:
        originals = first_equal_rows(x)
        is_first = tf.equal(originals, rows)
        places = tf.cumsum(tf.cast(is_first, tf.int32)) - 1  # [N]
        return tf.boolean_mask(rows, is_first), tf.gather(places, originals)

    return tf.cond(rows_differ(x), lambda: (rows, rows), by_hash)


def rows_differ(x: tf.Tensor) -> tf.Tensor:
    """Bool scalar: no two rows of `[N, D]` are equal; false also in the rare case of equal sums."""
    sums = tf.reduce_sum(x * tf.cast(hashing.right_shift(_multipliers(x), 40), x.dtype), axis=1)
    return tf.equal(tf.size(tf.unique(sums).y), tf.size(sums))


def first_equal_rows(x: tf.Tensor) -> tf.Tensor:
    """`[N]` int32: the first row of `[N, D]` that equals each row. A NaN equals nothing."""
    bits = {4: tf.int32, 8: tf.int64}[x.dtype.size]
    zeros_alike = tf.where(tf.equal(x, 0), tf.zeros_like(x), x)  # -0 equals 0
    words = tf.cast(tf.bitcast(zeros_alike, bits), tf.uint64)
    # Otherwise the sign bit of float64 would count only by the parity of the number of signs.
    words = tf.bitwise.bitwise_xor(words, hashing.right_shift(words, 32))
    products = tf.cast(words, tf.int64) * tf.cast(_multipliers(x), tf.int64)
    hashes = tf.reduce_sum(products, axis=1)  # [N], modulo 2^64
    same_hash, rows = tf.unique(hashes).idx, tf.range(tf.size(hashes))
    earliest = tf.math.unsorted_segment_min(rows, same_hash, tf.size(hashes))
    originals = tf.gather(earliest, same_hash)  # [N], the first row of the same hash
    equal = tf.reduce_all(tf.equal(x, tf.gather(x, originals)), axis=1)
    return tf.where(equal, originals, rows)


def _multipliers(x: tf.Tensor) -> tf.Tensor:
    """`[D]` odd numbers, random but fixed."""
    return tf.bitwise.bitwise_or(hashing.word_of(tf.range(tf.shape(x)[1])), 1)
