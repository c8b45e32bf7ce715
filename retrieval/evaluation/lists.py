"""Lists of the nearest catalogue items, in the order of the exact ranks."""

import numpy as np

from retrieval import progress
from retrieval.catalogue import neighbours
from retrieval.ranking import vectors

AT_ONCE = 8192  # queries searched between two reports of progress


def nearest(queries, items, k, similarity="cosine"):
    """`neighbours.nearest` of rows [Q, D] among rows [N, D], whose progress is told."""
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
    """What was found, [Q, k], the first `top` in the order of the ranks: by exact scores, then id.

    float32 cannot tell some items apart, and FAISS has its own order for those that tie.
    """
    left, right = vectors.pair(queries.embeddings, catalogue.embeddings, similarity)
    by_id = np.empty(len(catalogue), np.int64)
    by_id[np.argsort(catalogue.ids, kind="stable")] = np.arange(len(catalogue))
    # Runs of items so near to each other that rounding may have turned their order round.
    near = _gaps(scores, queries.embeddings, catalogue.embeddings, similarity) <= 0
    run = np.cumsum(np.pad(~near, ((0, 0), (1, 0))), axis=1)
    several = np.pad(near, ((0, 0), (0, 1))) | np.pad(near, ((0, 0), (1, 0)))
    query, place = np.nonzero(several & (run <= run[:, top - 1 : top]))
    exact = np.zeros(rows.shape)
    for part in parts_of(len(query), left.dimensions):
        q, at = query[part], place[part]
        exact[q, at] = vectors.pair_scores(left.left(q), right.right(rows[q, at]))
    order = np.lexsort((by_id[rows], -exact, run))
    return tuple(np.take_along_axis(each, order, 1) for each in (scores, rows))


def _gaps(scores, queries, catalogue, similarity):
    """[Q, k - 1]: by how much more two neighbours of a list differ than float32 may err in both.

    The error of a dot product of D terms is at most 1.1 D u |q||c| with u = 2^-24 (Higham, Accuracy
    and Stability of Numerical Algorithms, 3.1), and FAISS's squared distances are sums of three.
    Rows of unit length to within UNIT are ranked as they are, but handed to FAISS normalised.
    """
    values, largest, unit = scores.astype(np.float64), 1.0, 2.1 * vectors.UNIT
    if similarity != "cosine":
        q, c = (
            np.sqrt(np.einsum("ij,ij->i", each, each, dtype=np.float64))
            for each in (queries, catalogue)
        )
        largest, unit = q * c.max(initial=0), 0
    if similarity == "euclidean":
        values, largest = -np.square(values), np.square(q + c.max(initial=0))
    error = 1.1 * (queries.shape[1] + 8) * 2.0**-24 * largest + unit
    return values[:, :-1] - values[:, 1:] - 2 * np.reshape(error, (-1, 1))


def without_self(scores, rows, query_ids, catalogue_ids, top):
    """Moves the query itself behind its results and cuts the lists to `top`."""
    own = (rows >= 0) & (catalogue_ids[rows] == query_ids[:, None])
    order = np.argsort(own, axis=1, kind="stable")[:, :top]
    scores, rows = (np.take_along_axis(a, order, 1) for a in (scores, np.where(own, -1, rows)))
    return np.where(rows < 0, -np.inf, scores), rows


def first_right(right, itself):
    """Rank [Q] of the first True in a row of `right` [Q, k], `itself` left out; inf if none."""
    return np.where(right & ~itself, np.cumsum(~itself, axis=1), np.inf).min(1)


def tracked(count, step, what):
    """Slices of `count` rows, `step` each, whose progress is told."""
    parts = [slice(i, min(i + step, count)) for i in range(0, count, step)]
    return progress.track(parts, len(parts), what, lambda part: part.stop - part.start)


def parts_of(count, dimensions):
    step = max(1, vectors.CHUNK // dimensions)
    return [slice(i, i + step) for i in range(0, count, step)]
