"""Plain NumPy loops that define what the library computes, one triplet or pair at a time."""

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


def _candidates(labels, d, a, guard):
    """Negatives of anchor a, nearest first, the lowest index first among equals."""
    negatives = [i for i in range(len(labels)) if labels[i] != labels[a]]
    negatives = [i for i in negatives if guard is None or d[a, i] >= guard]
    return sorted(negatives, key=lambda i: (d[a, i], i))


def _positives(labels, a):
    return [i for i in range(len(labels)) if labels[i] == labels[a] and i != a]


def semi_hard(labels, d, margin=0.2, fallback="none", guard=None):
    triplets = []
    for a in range(len(labels)):
        negatives = _candidates(labels, d, a, guard)
        for p in _positives(labels, a):
            farther = [n for n in negatives if d[a, n] > d[a, p]]
            if farther and (margin is None or d[a, farther[0]] < d[a, p] + margin):
                triplets.append((a, p, farther[0]))
            elif negatives and fallback == "hardest":
                triplets.append((a, p, negatives[0]))
            elif negatives and fallback == "farthest":
                n = max(negatives, key=lambda i: (d[a, i], -i))
                triplets.append((a, p, n))
    return triplets


def easy_positive(labels, d, negative="semi_hard", guard=None):
    triplets = []
    for a in range(len(labels)):
        if positives := _positives(labels, a):
            p = min(positives, key=lambda i: (d[a, i], i))
            negatives = _candidates(labels, d, a, guard)
            if negative == "semi_hard":
                negatives = [n for n in negatives if d[a, n] > d[a, p]]
            triplets += [(a, p, n) for n in negatives[:1]]
    return triplets


def top_k_hard(labels, d, k=5, guard=None):
    triplets = []
    for a in range(len(labels)):
        if positives := _positives(labels, a):
            p = max(positives, key=lambda i: (d[a, i], -i))
            triplets += [(a, p, n) for n in _candidates(labels, d, a, guard)[:k]]
    return triplets


def given_positive(labels, d, negatives="both"):
    pairs = len(labels) // 2
    allowed = {"intra": range(pairs), "cross": range(pairs, 2 * pairs), "both": range(2 * pairs)}
    triplets = []
    for a in range(pairs):
        nearest = [n for n in _candidates(labels, d, a, None) if n in allowed[negatives]]
        triplets += [(a, a + pairs, n) for n in nearest[:1]]
    return triplets


def distance_weighted(labels, x, draws, cutoff=0.5, nonzero_loss_cutoff=1.4):
    """Wu et al.'s weights, and the negative at which their running sum passes each draw."""
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    d, dimension = distances("euclidean", x, x), x.shape[1]
    triplets = []
    for a in range(len(labels)):
        negatives = [i for i in range(len(labels)) if labels[i] != labels[a]]
        weights = []
        for n in negatives:
            z = max(d[a, n], cutoff)
            density = z ** (dimension - 2) * (1 - z * z / 4) ** ((dimension - 3) / 2)
            weights.append(1 / density if z < nonzero_loss_cutoff else 0)
        if not sum(weights):
            weights = [1] * len(negatives)
        members = [i for i in range(len(labels)) if labels[i] == labels[a]]
        for k, p in enumerate(members):
            if p != a and negatives:
                place = np.searchsorted(np.cumsum(weights), draws[a, k] * sum(weights), "right")
                triplets.append((a, p, negatives[place]))
    return triplets
