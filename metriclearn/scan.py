"""Scans the rows of a batch in blocks for miners."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from metriclearn.distances import DISTANCES, Distance, Nearness
from metriclearn.equal_rows import distinct_rows, first_equal_rows, rows_differ
from metriclearn.pairs import Comparison, classes, masks
from metriclearn.registry import resolve
from metriclearn.xla import compiling, refuse_xla

# Elements of one block of the anchor-by-reference matrix: 8 MiB in float32. Enough rows for the
# product to run near full speed, and few enough to stay in the CPU's cache afterwards.
BLOCK_ELEMENTS = 2**21


class Block(NamedTuple):
    """The data of `b` anchors for a miner. Larger nearness is nearer, and comparable within a row.

    Attributes:
        rows: `[b]` int32, row numbers of the anchors.
        columns: `[b, K]` int32, the references of the anchor's class in ascending order; K is the
            size of the largest class.
        is_positive: `[b, K]` bool, false in the padding and for the anchor itself.
        positives: `[b, K]` nearness of `columns`.
        negatives: `[b, M]` nearness of all references; the dtype's lowest value (not infinity,
            which would alarm `tf.debugging.enable_check_numerics`) for those of the anchor's class.
    """

    rows: tf.Tensor
    columns: tf.Tensor
    is_positive: tf.Tensor
    positives: tf.Tensor
    negatives: tf.Tensor


class MiningOptions(NamedTuple):
    """Options for ranking references.

    Attributes:
        distance: a name in `DISTANCES` or a `Distance`.
        mining_dtype: dtype of the matrix product; None: that of the embeddings.
        guard: references of another class nearer than this distance are not mined; None: no limit.
    """

    distance: str | Distance = "euclidean"
    mining_dtype: Any = None
    guard: Any = None


def scan_rows(
    select: Callable[[Block], tuple],
    dtypes: tuple[tf.DType, ...],
    comparison: Comparison,
    options: MiningOptions,
    *,
    self_last: bool = False,
) -> tuple[tf.Tensor, ...]:
    """Calls `select` with all anchors, in blocks of rows; the `[B, M]` matrix never exists.

    Memory is O(block + B D), without gradient. Only the product and one pass over it touch all of a
    row: references of the anchor's class are few, and are addressed individually.

    References with equal embeddings are ranked once, and so have equal scores. A matrix product
    does
    not guarantee this: its kernels sum the last columns in another order.

    Args:
        select: `Block -> tuple of [b, ...]`.
        dtypes: dtypes of the results of `select`.
        comparison: a `Comparison`.
        options: see `MiningOptions`.
        self_last: for a batch compared with itself: each anchor is the last of its `columns`.

    Returns:
        The concatenated results of `select`: a tuple of `[B, ...]`.

    Raises:
        ValueError: the distance is unknown, or `mining_dtype` is not floating point.
    """
    distance = resolve(options.distance, DISTANCES, "distance")
    embeddings = tf.stop_gradient(comparison.embeddings)
    alone = comparison.references is comparison.embeddings
    references = embeddings if alone else tf.stop_gradient(comparison.references)
    mining_dtype = tf.dtypes.as_dtype(options.mining_dtype or embeddings.dtype)
    if not mining_dtype.is_floating:
        raise ValueError(f"mining_dtype must be floating point, got {mining_dtype.name}")
    if not references.shape[0]:
        # An empty row has no nearest item: a dummy, which no anchor uses, makes an empty batch
        # legal.
        none = tf.cast(tf.equal(tf.shape(references)[0], 0), tf.int32)
        references = tf.pad(references, [[0, none], [0, 0]])
    if compiling():
        return select(_dense_block(comparison, embeddings, references, distance, options))
    with tf.control_dependencies(refuse_xla(embeddings, "mining_has_shapes_that_depend_on_data")):
        by_class = classes(comparison)
    total, width = tf.shape(embeddings)[0], tf.shape(references)[0]

    def ranking() -> Nearness:
        firsts, ranked_as = distinct_rows(references)  # [U], [M]
        repeats = tf.size(firsts) < tf.size(ranked_as)
        distinct = tf.cond(repeats, lambda: tf.gather(references, firsts), lambda: references)
        nearness = distance.nearness(distinct if alone else embeddings, distinct, mining_dtype)

        def scores_of(anchors: tf.Tensor) -> tf.Tensor:
            scores = nearness.scores(anchors)  # [b, U]
            # Rows are copied whole, columns by element: transposing twice is 4 times as fast.
            return tf.cond(
                repeats,
                lambda: tf.transpose(tf.gather(tf.transpose(scores), ranked_as)),  # [b, M]
                lambda: scores,
            )

        return Nearness(scores_of, nearness.limit)

    def block(first: tf.Tensor, end: tf.Tensor, nearness: Nearness) -> tuple:
        rows = slice(first, end)
        scores = nearness.scores(embeddings[rows])  # [b, M]
        last = by_class.place[rows] if self_last else None
        columns, present = by_class.members_of(comparison.codes[rows], last)  # [b, K]
        positives = tf.gather(scores, columns, batch_dims=1)  # [b, K]
        itself = tf.equal(columns, comparison.self_index[rows][:, None])
        anchors = tf.range(tf.shape(columns)[0])
        row_numbers = tf.broadcast_to(anchors[:, None], tf.shape(columns))
        # After `positives` is read, nothing else refers to the scores: the update is in place.
        with tf.control_dependencies([positives]):
            negatives = tf.tensor_scatter_nd_min(
                scores,
                tf.stack([row_numbers, columns], axis=2),
                tf.where(present, scores.dtype.min, scores.dtype.max),
            )
        if options.guard is not None:
            limits = nearness.limit(embeddings[rows], options.guard)[:, None]
            negatives = tf.where(negatives <= limits, negatives, negatives.dtype.min)
        is_positive = present & ~itself
        return select(Block(first + anchors, columns, is_positive, positives, negatives))

    count, static_width = embeddings.shape[0], references.shape[0]
    if count and static_width and count * static_width <= BLOCK_ELEMENTS:
        plain = _plain_scores(embeddings, distance, mining_dtype) if alone else None
        if plain is None:
            return block(0, count, ranking())
        legal, multiply = plain
        scores = tf.cond(legal, multiply, lambda: ranking().scores(embeddings))
        return block(0, count, Nearness(lambda _: scores, lambda *of: ranking().limit(*of)))

    nearness = ranking()
    step = tf.maximum(BLOCK_ELEMENTS // tf.maximum(width, 1), 1)
    arrays = tuple(
        tf.TensorArray(dtype, 0, dynamic_size=True, infer_shape=False) for dtype in dtypes
    )

    def body(i: tf.Tensor, arrays: tuple) -> tuple:
        results = block(i * step, tf.minimum((i + 1) * step, total), nearness)
        return i + 1, tuple(a.write(i, r) for a, r in zip(arrays, results, strict=True))

    # One block at a time: more would multiply the memory and compete for the same cores.
    _, arrays = tf.while_loop(
        lambda i, _: (i * step < total) | tf.equal(i, 0), body, (0, arrays), parallel_iterations=1
    )
    return tuple(array.concat() for array in arrays)


def _plain_scores(x: tf.Tensor, distance: Distance, dtype: tf.DType) -> tuple | None:
    """(bool scalar, function that gives the `[B, B]` scores of a batch where that holds).

    One condition, of few operations, covers all special cases: in a small batch, the number of
    operations determines the time. None if the scores never have the form of `Symmetric`.
    """
    if distance.symmetric is None or dtype == tf.float16:
        return None
    symmetric = distance.symmetric(x)

    def multiply() -> tf.Tensor:
        narrow = tf.cast(x, dtype)
        products = tf.cast(tf.matmul(narrow, narrow, transpose_b=True), x.dtype)
        return tf.nn.bias_add(products, symmetric.bias)

    return symmetric.holds & rows_differ(x), multiply


def _dense_block(
    comparison: Comparison,
    embeddings: tf.Tensor,
    references: tf.Tensor,
    distance: Distance,
    options: MiningOptions,
) -> Block:
    """All anchors in one block, with every reference as a column: shapes do not depend on data."""
    mining_dtype = tf.dtypes.as_dtype(options.mining_dtype or embeddings.dtype)
    nearness = distance.nearness(embeddings, references, mining_dtype)
    scores = tf.gather(nearness.scores(embeddings), first_equal_rows(references), axis=1)
    positive, negative = masks(comparison)
    negatives = tf.where(negative, scores, scores.dtype.min)
    if options.guard is not None:
        limits = nearness.limit(embeddings, options.guard)[:, None]
        negatives = tf.where(negatives <= limits, negatives, negatives.dtype.min)
    rows = tf.range(tf.shape(scores)[0])
    columns = tf.broadcast_to(tf.range(tf.shape(scores)[1]), tf.shape(scores))
    return Block(rows, columns, positive, scores, negatives)
