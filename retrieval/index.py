"""A catalogue of embeddings that answers: which items are nearest?"""

import faiss
import numpy as np


def flat(catalogue: np.ndarray, similarity: str = "cosine"):
    """Builds an exact FAISS index over catalogue [N, D], searched with `search`."""
    catalogue = prepare(catalogue, similarity)
    kind = faiss.IndexFlatL2 if similarity == "euclidean" else faiss.IndexFlatIP
    index = kind(catalogue.shape[1])
    index.add(catalogue)
    return index


def search(index, queries: np.ndarray, k: int, similarity: str = "cosine"):
    """Returns (scores float32 [Q, k], rows int64 [Q, k]), best first.

    Scores are larger the nearer: cosine, dot product or the negative Euclidean distance. Where the
    catalogue has fewer than k items, the surplus rows are -1 with score -inf.
    """
    scores, rows = index.search(prepare(queries, similarity), k)
    if similarity == "euclidean":
        scores = -np.sqrt(np.maximum(scores, 0))
    scores[rows < 0] = -np.inf
    return scores, rows


def prepare(embeddings, similarity):
    """Float32, contiguous, and of unit length where the similarity is cosine."""
    embeddings = np.ascontiguousarray(embeddings, np.float32)
    if similarity == "cosine":
        norms = np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
        embeddings = (embeddings / norms).astype(np.float32)
    return embeddings
