"""Hardest positive and negative within a batch, from half of its matrix of scores.

What anchor i and reference j have in common, the product of their rows, serves j and i as well.
"""

import tensorflow as tf

from metriclearn import pairs, scan
from metriclearn.distances import DISTANCES
from metriclearn.equal_rows import rows_differ
from metriclearn.pairs import Comparison
from metriclearn.registry import resolve
from metriclearn.scan import MiningOptions
from metriclearn.xla import compiling

# Elements of one block: enough rows that ordering the other side for the product costs little.
BLOCK_ELEMENTS = 2**22
ROWS = 512  # of a block at most: what is beyond its first rows is computed once
MEMBERS = 64  # of a class at most: all of a batch's positive pairs are held


def among_itself(comparison: Comparison, options: MiningOptions) -> tuple | None:
    """(bool scalar, a function that is legal where it holds) for a batch.

    The function returns `[B]` positives, `[B]` negatives and `[B]` whether there is a negative.

    None where it is known to be of no use: with references or a guard, for distances whose scores
    are not symmetric, and for a batch that is one block of `scan_rows`.
    """
    size = comparison.embeddings.shape[0]
    alone = comparison.references is comparison.embeddings
    if compiling() or not alone or options.guard is not None:
        return None
    if size is not None and size**2 <= scan.BLOCK_ELEMENTS:
        return None
    distance = resolve(options.distance, DISTANCES, "distance")
    embeddings = tf.stop_gradient(comparison.embeddings)
    dtype = tf.dtypes.as_dtype(options.mining_dtype or embeddings.dtype)
    if distance.symmetric is None or not dtype.is_floating or dtype == tf.float16:
        return None
    symmetric = distance.symmetric(embeddings)
    number = tf.cast(tf.shape(embeddings)[0], tf.int64)
    useful = (number**2 > scan.BLOCK_ELEMENTS) & (pairs.members(comparison) <= MEMBERS)
    legal = useful & symmetric.holds & rows_differ(embeddings)
    return legal, lambda: _scan(comparison, embeddings, symmetric.bias, dtype)


def _scan(comparison: Comparison, points: tf.Tensor, bias: tf.Tensor, dtype: tf.DType) -> tuple:
    # Where `symmetric` holds, scores are above a quarter of the lowest number, and half of it stays
    # below that, and in range, when biases are added.
    narrow, lowest = tf.cast(points, dtype), points.dtype.min / 2
    total = tf.shape(points)[0]
    step = tf.clip_by_value(BLOCK_ELEMENTS // total, 1, ROWS)
    classes = pairs.classes(comparison)

    def body(start: tf.Tensor, best: tf.Tensor, chosen: tf.Tensor, arrays: tuple) -> tuple:
        """`best` and `chosen`: score and row of the best reference so far, of rows from `start`."""
        end = tf.minimum(start + step, total)
        count = end - start
        # [b, w]: rows from `start` to `end` with all from `start` on.
        scores = tf.matmul(narrow[start:end], narrow[start:], transpose_b=True)
        scores = tf.nn.bias_add(tf.cast(scores, points.dtype), bias[start:])
        columns, present = classes.members_of(comparison.codes[start:end])  # [b, K]
        inside = present & (columns >= start)
        at = tf.where(inside, columns - start, 0)
        positives = tf.gather(scores, at, batch_dims=1)  # [b, K]
        rows = tf.broadcast_to(tf.range(count)[:, None], tf.shape(at))
        with tf.control_dependencies([positives]):  # so that the update is done in place
            scores = tf.tensor_scatter_nd_min(
                scores, tf.stack([rows, at], 2), tf.where(inside, lowest, scores.dtype.max)
            )
        # The references from `start` on of these rows; then these rows as references of later ones.
        found, place = _best(scores)
        mirrored = tf.nn.bias_add(tf.transpose(scores)[count:], bias[start:end])  # [w - b, b]
        found_later, place_later = _best(mirrored)
        found = tf.concat([found, found_later - bias[end:]], 0)
        better = found > best
        chosen = tf.where(better, start + tf.concat([place, place_later], 0), chosen)
        best = tf.where(better, found, best)
        results = positives, best[:count], chosen[:count]
        arrays = tuple(a.write(start // step, r) for a, r in zip(arrays, results, strict=True))
        return end, best[count:], chosen[count:], arrays

    dtypes = points.dtype, points.dtype, tf.int32
    arrays = tuple(tf.TensorArray(d, 0, dynamic_size=True, infer_shape=False) for d in dtypes)
    unknown = tf.TensorShape([None])
    *_, arrays = tf.while_loop(
        lambda start, *_: start < total,
        body,
        (0, tf.fill([total], lowest), tf.zeros([total], tf.int32), arrays),
        (tf.TensorShape([]), unknown, unknown, (tf.TensorShape(None),) * 3),
        parallel_iterations=1,
    )
    scores, best, negatives = (array.concat() for array in arrays)
    rows = tf.range(total)
    columns, present = classes.members_of(comparison.codes)  # [B, K]
    # An earlier block holds the pair as that of the other row, and with the bias of this one.
    mirrored = tf.stack([columns, tf.broadcast_to(classes.place[:, None], tf.shape(columns))], 2)
    earlier = tf.gather_nd(scores, mirrored) - bias[:, None] + tf.gather(bias, columns)
    scores = tf.where(columns < (rows // step * step)[:, None], earlier, scores)
    is_positive = present & tf.not_equal(columns, rows[:, None])
    farthest = tf.argmin(tf.where(is_positive, scores, scores.dtype.max), 1, tf.int32)
    positives = tf.gather(columns, farthest, batch_dims=1)
    return positives, negatives, best > lowest / 2


def _best(scores: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(`[b]` the highest score of each row, `[b]` int32 its place; of equals, the lowest)."""
    place = tf.argmax(scores, axis=1, output_type=tf.int32)
    return tf.gather(scores, place, batch_dims=1), place
