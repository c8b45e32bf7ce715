"""Which examples are compared: labels as codes, references, and the scan of rows in blocks."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from metriclearn.distances import DISTANCES, Distance, Nearness, normalize
from metriclearn.equal_rows import distinct_rows, first_equal_rows, rows_differ
from metriclearn.inputs import TensorLike, check_batch, column_tensor, match_rows
from metriclearn.registry import resolve
from metriclearn.xla import compiling, refuse_xla

# Elements of one block of the anchor-by-reference matrix: 8 MiB in float32. Enough rows for the
# product to run near its full speed, and few enough to stay near the CPU's cache afterwards.
BLOCK_ELEMENTS = 2**21


class References(NamedTuple):
    """What a batch is compared with, if that is not the batch itself (a memory, another domain).

    Attributes:
        labels: `[M]`, strings if the batch's labels are strings; else integers of any width.
        embeddings: `[M, D]`.
        self_index: `[B]` integers, the row among the references that *is* this example of the batch
            (it is never its own positive), or -1 where there is none.
    """

    labels: TensorLike
    embeddings: TensorLike
    self_index: TensorLike


class Comparison(NamedTuple):
    """A batch and its references, checked and made uniform.

    Attributes:
        codes: `[B]` int32, equal where labels are equal.
        embeddings: `[B, D]`, at least float32.
        reference_codes: `[M]` int32, comparable with `codes`.
        references: `[M, D]`.
        self_index: `[B]` int32, the reference that is the anchor itself, or -1.
    """

    codes: tf.Tensor
    embeddings: tf.Tensor
    reference_codes: tf.Tensor
    references: tf.Tensor
    self_index: tf.Tensor

    def distances(
        self,
        distance: str | Distance,
        anchors: TensorLike,
        positives: TensorLike,
        negatives: TensorLike,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """(d(a, p), d(a, n)), `[T]` each, of triplets of row indices."""
        return self.pair_distances(distance, (anchors, positives, anchors, negatives))

    def pair_distances(
        self, distance: str | Distance, pairs: Sequence[TensorLike]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """(`[P]`, `[N]`) distances of positive and of negative pairs, given as in `Pairs`."""
        metric = resolve(distance, DISTANCES, "distance")
        rows = [tf.cast(column_tensor(r, "the triplets' rows"), tf.int32) for r in pairs]
        if compiling():  # padding is -1
            rows = [tf.maximum(r, 0) for r in rows]
        anchors, others = tf.concat(rows[::2], 0), tf.concat(rows[1::2], 0)
        # In one call, so that their gradients share one sum.
        distances = metric.of_pairs(self.embeddings, anchors, self.references, others)
        return tuple(tf.split(distances, [tf.size(rows[0]), tf.size(rows[2])]))

    def normalized(self) -> "Comparison":
        """The same with embeddings and references of length 1."""
        embeddings = normalize(self.embeddings)
        alone = self.references is self.embeddings
        return self._replace(
            embeddings=embeddings,
            references=embeddings if alone else normalize(self.references),
        )


def compare(
    labels: TensorLike, embeddings: TensorLike, references: References | None = None
) -> Comparison:
    """Checks shapes and dtypes, and turns labels of any legal dtype into codes.

    Args:
        labels: `[B]`, see `metriclearn.inputs`.
        embeddings: `[B, D]` floating point.
        references: what to compare with; the batch if None.

    Raises:
        ValueError: labels or embeddings are not legal, or do not fit together.
    """
    labels, embeddings = check_batch(labels, embeddings)
    batch = tf.shape(embeddings)[0]
    if references is None:
        codes = tf.unique(labels).idx
        return Comparison(codes, embeddings, codes, embeddings, tf.range(batch))
    others, rows = check_batch(references.labels, references.embeddings, "reference ")
    if not embeddings.shape[1:].is_compatible_with(rows.shape[1:]):
        raise ValueError(
            f"embeddings of {embeddings.shape[1]} dimensions cannot be compared with reference "
            f"embeddings of {rows.shape[1]}"
        )
    self_index = column_tensor(references.self_index, "self_index")
    if not self_index.dtype.is_integer:
        raise ValueError(f"self_index must be integers, got {self_index.dtype.name}")
    self_index = match_rows(tf.cast(self_index, tf.int32), embeddings, "self_index", "embeddings")
    codes = common_codes(labels, others)
    return Comparison(
        codes[:batch], embeddings, codes[batch:], tf.cast(rows, embeddings.dtype), self_index
    )


def common_codes(labels: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """`[B + M]` int32 codes of both, equal where labels are equal, whatever their widths.

    Raises:
        ValueError: one are strings and the others are not.
    """
    if labels.dtype == others.dtype:
        return tf.unique(tf.concat([labels, others], 0)).idx
    if tf.string in (labels.dtype, others.dtype):
        raise ValueError(
            f"labels are {labels.dtype.name} and reference labels {others.dtype.name}: they would "
            "never be equal"
        )
    # Equal bits mean equal integers, except that uint64 from 2^63 on looks like negative int64.
    bits = tf.concat([tf.cast(labels, tf.int64), tf.cast(others, tf.int64)], 0)
    beyond = [(t.dtype == tf.uint64) & (tf.cast(t, tf.int64) < 0) for t in (labels, others)]
    return tf.unique(2 * tf.unique(bits).idx + tf.cast(tf.concat(beyond, 0), tf.int32)).idx


def masks(comparison: Comparison) -> tuple[tf.Tensor, tf.Tensor]:
    """Boolean `[B, M]` masks (positive, negative) of all pairs; self is in neither."""
    same = tf.equal(comparison.codes[:, None], comparison.reference_codes)
    return same & ~themselves(comparison), ~same


def themselves(comparison: Comparison) -> tf.Tensor:
    """Boolean `[B, M]`: the reference that is the anchor itself."""
    columns = tf.range(tf.shape(comparison.reference_codes)[0])
    return tf.equal(comparison.self_index[:, None], columns)


def informative_pairs(
    similarity: tf.Tensor, positive: tf.Tensor, negative: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """The pairs that multi-similarity mines (arXiv 1904.06627, eq. 6-7), of `[B, M]` masks.

    Positives less similar than the anchor's most similar negative plus epsilon, and negatives more
    similar than its least similar positive minus epsilon.
    """
    s = tf.stop_gradient(similarity)
    easiest = tf.reduce_min(tf.where(positive, s, s.dtype.max), axis=1, keepdims=True)
    hardest = tf.reduce_max(tf.where(negative, s, s.dtype.min), axis=1, keepdims=True)
    return positive & (s - epsilon < hardest), negative & (s + epsilon > easiest)


def valid_anchors(comparison: Comparison) -> tf.Tensor:
    """Boolean `[B]`: the anchors with at least one positive and one negative reference."""
    # Counted from the labels and not seen in distances: a NaN embedding must not drop its anchor.
    same = tf.gather(class_sizes(comparison), comparison.codes)
    positives = same - tf.cast(comparison.self_index >= 0, tf.int32)
    return (positives > 0) & (same < tf.size(comparison.reference_codes))


def class_sizes(comparison: Comparison) -> tf.Tensor:
    """`[B + M]` int32: how many references have each code."""
    codes = comparison.reference_codes
    # As many as there may be: under XLA no shape depends on data.
    most = tf.size(comparison.codes) + tf.size(codes)
    return tf.math.unsorted_segment_sum(tf.ones_like(codes), codes, most)


class Classes(NamedTuple):
    """The references of each class, by class.

    Attributes:
        by_class: `[M]` int32, references ordered by class, then by row.
        starts, sizes: `[C]` int32, where each class begins there, and how many it has.
        slots: `[K]` int32, 0 to the size of the largest class.
    """

    by_class: tf.Tensor
    starts: tf.Tensor
    sizes: tf.Tensor
    slots: tf.Tensor

    def members_of(self, codes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """(`[b, K]` int32 references of each code in ascending order, `[b, K]` bool: no padding)"""
        present = self.slots < tf.gather(self.sizes, codes)[:, None]
        at = tf.where(present, tf.gather(self.starts, codes)[:, None] + self.slots, 0)
        return tf.gather(self.by_class, at), present


def classes(comparison: Comparison) -> Classes:
    sizes = class_sizes(comparison)
    return Classes(
        tf.argsort(comparison.reference_codes, stable=True),
        tf.cumsum(sizes, exclusive=True),
        sizes,
        tf.range(members(comparison)),
    )


def members(comparison: Comparison) -> tf.Tensor:
    """K, the columns of a `Block`: the size of the largest class; of all references under XLA."""
    if compiling():
        return tf.size(comparison.reference_codes)
    return tf.maximum(tf.reduce_max(class_sizes(comparison)), 1)


class Block(NamedTuple):
    """What a miner sees of `b` anchors. Nearness is larger where nearer, and comparable in a row.

    Attributes:
        rows: `[b]` int32, which anchors these are.
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
    """How a miner ranks references.

    Attributes:
        distance: a name in `DISTANCES` or a `Distance`.
        mining_dtype: dtype of the matrix product; None for that of the embeddings.
        guard: references of another class nearer than this distance are not mined; None for none.
    """

    distance: str | Distance = "euclidean"
    mining_dtype: Any = None
    guard: Any = None


def scan_rows(
    select: Callable[[Block], tuple],
    dtypes: tuple[tf.DType, ...],
    comparison: Comparison,
    options: MiningOptions,
) -> tuple[tf.Tensor, ...]:
    """Shows `select` all anchors, a block of rows at a time; the `[B, M]` matrix never exists.

    Memory is O(block + B D), and no gradient passes. Only the product and one pass over it touch
    all of a row: references of the anchor's class are few, and are addressed one by one.

    References with equal embeddings are ranked once, and so get equal scores. A matrix product does
    not give them by itself: its kernels sum the last columns in another order.

    Args:
        select: `Block -> tuple of [b, ...]`.
        dtypes: the dtypes of what `select` returns.
        comparison: a `Comparison`.
        options: see `MiningOptions`.

    Returns:
        What `select` returns, its blocks concatenated: a tuple of `[B, ...]`.

    Raises:
        ValueError: an unknown distance, or a `mining_dtype` that is not floating point.
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
            # Rows are copied whole, columns element by element: twice transposed is 4 times as
            # fast.
            return tf.cond(
                repeats,
                lambda: tf.transpose(tf.gather(tf.transpose(scores), ranked_as)),  # [b, M]
                lambda: scores,
            )

        return Nearness(scores_of, nearness.limit)

    def block(first: tf.Tensor, end: tf.Tensor, nearness: Nearness) -> tuple:
        rows = slice(first, end)
        scores = nearness.scores(embeddings[rows])  # [b, M]
        columns, present = by_class.members_of(comparison.codes[rows])  # [b, K]
        positives = tf.gather(scores, columns, batch_dims=1)  # [b, K]
        itself = tf.equal(columns, comparison.self_index[rows][:, None])
        anchors = tf.range(tf.shape(columns)[0])
        row_numbers = tf.broadcast_to(anchors[:, None], tf.shape(columns))
        # Once `positives` is read, nothing else holds the scores, and the update is done in place.
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

    # One block in flight: more would multiply the memory and compete for the same cores.
    _, arrays = tf.while_loop(
        lambda i, _: (i * step < total) | tf.equal(i, 0), body, (0, arrays), parallel_iterations=1
    )
    return tuple(array.concat() for array in arrays)


def _plain_scores(x: tf.Tensor, distance: Distance, dtype: tf.DType) -> tuple | None:
    """(bool scalar, function that gives the `[B, B]` scores of a batch where that holds).

    One condition, of few operations, for all that may be out of the ordinary: in a small batch
    their number is what takes the time. None if the scores never have the form of `Symmetric`.
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
    """All anchors in one block with every reference as a column: no shape depends on data."""
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
