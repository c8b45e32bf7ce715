"""The examples to compare: labels as codes, references, classes."""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from metriclearn.distances import DISTANCES, Distance, normalize
from metriclearn.inputs import TensorLike, check_batch, column_tensor, match_rows
from metriclearn.registry import resolve
from metriclearn.xla import compiling


class References(NamedTuple):
    """Embeddings to compare a batch with, other than the batch itself (a memory, another domain).

    Attributes:
        labels: `[M]`, strings if the batch's labels are strings; otherwise integers of any width.
        embeddings: `[M, D]`.
        self_index: `[B]` integers, the row of the references that *is* this example of the batch
            (an example is never its own positive), or -1 if there is none.
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
        references: what to compare with; None: the batch.

    Raises:
        ValueError: labels or embeddings are invalid, or do not fit together.
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
        ValueError: only one of the two has strings.
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
    # Counted from the labels, not from distances: a NaN embedding must not drop its anchor.
    same = tf.gather(class_sizes(comparison), comparison.codes)
    positives = same - tf.cast(comparison.self_index >= 0, tf.int32)
    return (positives > 0) & (same < tf.size(comparison.reference_codes))


def class_sizes(comparison: Comparison) -> tf.Tensor:
    """`[B + M]` int32: how many references have each code."""
    codes = comparison.reference_codes
    # The maximum number: under XLA, shapes must not depend on data.
    most = tf.size(comparison.codes) + tf.size(codes)
    return tf.math.unsorted_segment_sum(tf.ones_like(codes), codes, most)


class Classes(NamedTuple):
    """The references of each class, by class.

    Attributes:
        by_class: `[M]` int32, references ordered by class, then by row.
        starts, sizes: `[C]` int32, start of each class there, and its size.
        place: `[M]` int32, the position of each reference in its class.
        slots: `[K]` int32, 0 to the size of the largest class.
    """

    by_class: tf.Tensor
    starts: tf.Tensor
    sizes: tf.Tensor
    place: tf.Tensor
    slots: tf.Tensor

    def members_of(
        self, codes: tf.Tensor, last: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """(`[b, K]` int32 references of each code in ascending order, `[b, K]` bool: no padding).

        Args:
            codes: `[b]`.
            last: `[b]` positions in the class, placed after the others.
        """
        sizes = tf.gather(self.sizes, codes)[:, None]
        places, present = self.slots, self.slots < sizes
        if last is not None:
            others = places + tf.cast(places >= last[:, None], tf.int32)
            places = tf.where(tf.equal(places, sizes - 1), last[:, None], others)
        at = tf.where(present, tf.gather(self.starts, codes)[:, None] + places, 0)
        return tf.gather(self.by_class, at), present


def classes(comparison: Comparison) -> Classes:
    """The `Classes` of a comparison."""
    sizes = class_sizes(comparison)
    by_class = tf.argsort(comparison.reference_codes, stable=True)
    starts = tf.cumsum(sizes, exclusive=True)
    place = tf.math.invert_permutation(by_class) - tf.gather(starts, comparison.reference_codes)
    return Classes(by_class, starts, sizes, place, tf.range(members(comparison)))


def members(comparison: Comparison) -> tf.Tensor:
    """K, the columns of a `Block`: the size of the largest class; of all references under XLA."""
    if compiling():
        return tf.size(comparison.reference_codes)
    return tf.maximum(tf.reduce_max(class_sizes(comparison)), 1)
