"""Similarity of images of the same product and of different products."""

import numpy as np

from retrieval.evaluation import identity
from retrieval.ranking.relevant import relevant_pairs
from retrieval.ranking.vectors import pair_similarity

SAMPLES = 100_000  # pairs of each kind


def histogram(queries, catalogue, similarity, bins=60, seed=0):
    """Histograms of the similarity of images of the same product and of different products.

    Args:
      queries, catalogue: `Embedded`.
      similarity: 'cosine', 'dot' or 'euclidean'.
      bins: number of bins.
      seed: seed for choosing at most `SAMPLES` pairs of each kind.

    Returns:
      {'edges' [bins + 1], 'same_product' [bins], 'different_product' [bins], 'unit'}. The unit is
      the similarity, or for euclidean the distance.
    """
    random = np.random.default_rng(seed)
    codes = np.unique(np.concatenate([queries.products, catalogue.products]), return_inverse=True)[
        1
    ]
    ql, cl = codes[: len(queries)], codes[len(queries) :]
    same = identity.same_images(queries, catalogue)
    some = np.sort(random.permutation(len(queries))[:SAMPLES])
    place = np.searchsorted(some, same.query).clip(max=len(some) - 1)
    kept = some[place] == same.query
    at, items = relevant_pairs(ql[some], cl, (place[kept], same.item[kept]))
    keep = random.permutation(len(at))[:SAMPLES]
    alike = some[at[keep]], items[keep]
    q, c = random.integers(0, len(queries), SAMPLES), random.integers(0, len(catalogue), SAMPLES)
    differ = ql[q] != cl[c]
    values = [
        pair_similarity(queries.embeddings[a], catalogue.embeddings[b], similarity)
        for a, b in (alike, (q[differ], c[differ]))
    ]
    everything = np.concatenate(values)
    low, high = (everything.min(), everything.max()) if len(everything) else (0.0, 1.0)
    if high - low < 1e-6 * max(abs(low), abs(high), 1e-6):  # collapsed: bins without width
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    counts = [np.histogram(v, edges)[0].tolist() for v in values]
    unit = "distance" if similarity == "euclidean" else similarity
    return {
        "unit": unit,
        "edges": edges.tolist(),
        "same_product": counts[0],
        "different_product": counts[1],
    }
