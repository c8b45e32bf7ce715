"""Plain NumPy loops that say what the library should compute, one triplet or pair at a time."""

import numpy as np


def distance(name, a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if name == "dot":
        return -np.dot(a, b)
    if name == "cosine":
        norms = np.linalg.norm(a) * np.linalg.norm(b)
        return 1.0 - (np.dot(a, b) / norms if norms else 0.0)
    squared = np.sum((a - b) ** 2)
    return squared if name == "squared" else np.sqrt(squared)


def distances(name, x, y):
    return np.array([[distance(name, a, b) for b in y] for a in x]).reshape(len(x), len(y))


def batch_hard(labels, d):
    """(a, p, n) for each anchor with a positive and a negative; lowest index among equals."""
    triplets = []
    for a in range(len(labels)):
        positives = [i for i in range(len(labels)) if labels[i] == labels[a] and i != a]
        negatives = [i for i in range(len(labels)) if labels[i] != labels[a]]
        if positives and negatives:
            p = max(positives, key=lambda i: (d[a, i], -i))
            n = min(negatives, key=lambda i: (d[a, i], i))
            triplets.append((a, p, n))
    return triplets


def batch_all(labels):
    rows = range(len(labels))
    return [
        (a, p, n)
        for a in rows
        for p in rows
        for n in rows
        if labels[a] == labels[p] and a != p and labels[a] != labels[n]
    ]


def triplet_loss(triplets, d, margin=0.2, soft=False, reduction="mean"):
    terms = np.array([d[a, p] - d[a, n] for a, p, n in triplets], np.float64)
    terms = np.logaddexp(0, terms) if soft else np.maximum(terms + margin, 0)
    return reduce_terms(terms, reduction)


def reduce_terms(terms, reduction):
    terms = np.asarray(terms, np.float64)
    if reduction == "none":
        return terms
    total = terms.sum()
    if reduction == "sum":
        return total
    count = len(terms) if reduction == "mean" else np.count_nonzero(terms)
    return total / count if count else 0.0


def gradient(function, x, step=1e-6):
    """Central differences of a scalar function of an array."""
    x = np.array(x, np.float64)
    result = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        above, below = x.copy(), x.copy()
        above[i] += step
        below[i] -= step
        result[i] = (function(above) - function(below)) / (2 * step)
    return result
