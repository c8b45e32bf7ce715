"""Lists of the nearest catalogue items, in the order of the exact ranks."""

import numpy as np

from retrieval import progress
from retrieval.catalogue import neighbours
from retrieval.ranking import exact, vectors

AT_ONCE = 8192  # queries per progress report


def nearest(queries, items, k, similarity="cosine"):
    """`neighbours.nearest` of rows [Q, D] among rows [N, D], with progress.

    Raises:
      ValueError: scores exceed the range of float32.
    """
    parts = [
        neighbours.nearest(queries[rows], [items], k, similarity)
        for rows in tracked(len(queries), AT_ONCE, "exact search, queries")
    ]
    scores, rows = (np.concatenate(each) for each in zip(*parts, strict=True))
    if not np.isfinite(scores).all():
        raise ValueError(
            f"some scores by --similarity={similarity} are beyond float32: divide all embeddings "
            "by one number first"
        )
    return scores, rows


def in_order(scores, rows, queries, catalogue, similarity, top):
    """Sorts lists like the exact ranks: by exact similarity, then by id.

    float32 is inconclusive for some items, and FAISS orders ties differently.

    Args:
      scores, rows: [Q, k], the results of FAISS, best first.
      queries, catalogue: `Embedded`.
      top: only the first `top` of each list must be in order.

    Returns:
      (scores, rows): the same [Q, k], sorted.
    """
    left, right = vectors.pair(queries.embeddings, catalogue.embeddings, similarity)
    by_id = np.empty(len(catalogue), np.int64)
    by_id[np.argsort(catalogue.ids, kind="stable")] = np.arange(len(catalogue))
    # Runs of items so close that rounding may have changed their order.
    near = _gaps(scores, queries.embeddings, catalogue.embeddings, similarity) <= 0
    run = np.cumsum(np.pad(~near, ((0, 0), (1, 0))), axis=1)
    several = np.pad(near, ((0, 0), (0, 1))) | np.pad(near, ((0, 0), (1, 0)))
    query, place = np.nonzero(several & (run <= run[:, top - 1 : top]))
    item = rows[query, place]
    score, error = exact.in_parts(exact.scores, left, right, query, item)

    def keys(at):
        return exact.in_parts(exact.keys, left, right, query[at], item[at])

    group = np.cumsum(np.diff(query * scores.shape[1] + run[query, place], prepend=-1) != 0)
    by = exact.order(group, score, error, by_id[item], keys)[0]
    order = np.tile(np.arange(scores.shape[1]), (len(scores), 1))
    order[query, place] = place[by]
    return tuple(np.take_along_axis(each, order, 1) for each in (scores, rows))


def _gaps(scores, queries, catalogue, similarity):
    """[Q, k - 1]: difference of two neighbors in a list minus the float32 error bound of both.

    The error of a dot product of D terms is at most 1.1 D u |q||c| with u = 2^-24 (Higham, Accuracy
    and Stability of Numerical Algorithms, 3.1), and FAISS's squared distances are sums of three.
    Rounding the rows themselves to float32 adds less than 4 u |q||c|.
    """
    values, largest = scores.astype(np.float64), 1.0
    if similarity != "cosine":
        q, c = (
            np.sqrt(np.einsum("ij,ij->i", each, each, dtype=np.float64))
            for each in (queries, catalogue)
        )
        largest = q * c.max(initial=0)
    if similarity == "euclidean":
        values, largest = -np.square(values), np.square(q + c.max(initial=0))
    error = 1.1 * (queries.shape[1] + 12) * 2.0**-24 * largest
    return values[:, :-1] - values[:, 1:] - 2 * np.reshape(error, (-1, 1))


def without(scores, rows, itself, top):
    """Removes the query itself from lists and cuts them to `top`.

    Args:
      scores, rows: [Q, k], best first; rows are negative after the last item.
      itself: bool [Q, k], see `identity.Same.among`.

    Returns:
      (scores, rows): [Q, top], padded with -inf and -1.
    """
    order = np.argsort(itself, axis=1, kind="stable")[:, :top]
    scores, rows = (np.take_along_axis(a, order, 1) for a in (scores, np.where(itself, -1, rows)))
    return np.where(rows < 0, -np.inf, scores), rows


def first_right(right, itself):
    """Rank [Q] of the first True of each row of `right` [Q, k], without `itself`; inf if none."""
    return np.where(right & ~itself, np.cumsum(~itself, axis=1), np.inf).min(1)


def tracked(count, step, what):
    """Slices of `count` rows, `step` each, with progress."""
    parts = [slice(i, min(i + step, count)) for i in range(0, count, step)]
    return progress.track(parts, len(parts), what, lambda part: part.stop - part.start)
