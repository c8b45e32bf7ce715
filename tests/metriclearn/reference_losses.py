"""Every loss as a plain loop over anchors and pairs, float64: the mean over its terms."""

import numpy as np
import reference


def _rows(labels):
    """(a, positives, negatives) of each anchor that has both."""
    rows = range(len(labels))
    for a in rows:
        positives = [i for i in rows if labels[i] == labels[a] and i != a]
        negatives = [i for i in rows if labels[i] != labels[a]]
        if positives and negatives:
            yield a, positives, negatives


def _mean(terms):
    terms = list(terms)
    return sum(terms) / len(terms) if terms else 0.0


def _lse(values):
    values = np.array(list(values))
    return values.max() + np.log(np.sum(np.exp(values - values.max())))


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def contrastive(labels, x, positive_margin=0.1, negative_margin=1.5):
    d = reference.distances("euclidean", x, x)
    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
    near = [max(0, d[i, j] - positive_margin) for i, j in pairs if labels[i] == labels[j]]
    far = [max(0, negative_margin - d[i, j]) for i, j in pairs if labels[i] != labels[j]]
    return _mean(near) + _mean(far)


def lifted_structured(labels, x, margin=1.0):
    d = reference.distances("euclidean", x, x)
    return _mean(
        max(0, _lse(d[a, p] for p in ps) + _lse(margin - d[a, n] for n in ns))
        for a, ps, ns in _rows(labels)
    )


def n_pairs(labels, x):
    s = x @ x.T
    return _mean(
        np.log1p(sum(np.exp(s[a, n] - s[a, p]) for n in ns))
        for a, ps, ns in _rows(labels)
        for p in ps
    )


def supervised_contrastive(labels, x, temperature=0.5):
    s = 1 - reference.distances("cosine", x, x)
    terms = []
    for a, ps, ns in _rows(labels):
        total = sum(np.exp(s[a, j] / temperature) for j in ps + ns)
        terms.append(_mean(-np.log(np.exp(s[a, p] / temperature) / total) for p in ps))
    return _mean(terms)


def multi_similarity(labels, x, alpha=2.0, beta=10.0, base=0.5, epsilon=0.3):
    s = 1 - reference.distances("cosine", x, x)
    terms = []
    for a, ps, ns in _rows(labels):
        least, most = min(s[a, p] for p in ps), max(s[a, n] for n in ns)
        ps = [p for p in ps if s[a, p] - epsilon < most]
        ns = [n for n in ns if s[a, n] + epsilon > least]
        terms.append(
            np.log1p(sum(np.exp(-alpha * (s[a, p] - base)) for p in ps)) / alpha
            + np.log1p(sum(np.exp(beta * (s[a, n] - base)) for n in ns)) / beta
        )
    return _mean(terms)


def circle(labels, x, relaxation=0.3, gamma=4.0, fixed=None):
    s = 1 - reference.distances("cosine", x, x)
    weights = s if fixed is None else 1 - reference.distances("cosine", fixed, fixed)
    terms = []
    for a, ps, ns in _rows(labels):
        pull = [
            -gamma * max(0, 1 + relaxation - weights[a, p]) * (s[a, p] - 1 + relaxation) for p in ps
        ]
        push = [gamma * max(0, weights[a, n] + relaxation) * (s[a, n] - relaxation) for n in ns]
        terms.append(np.log1p(np.exp(_lse(pull) + _lse(push))))
    return _mean(terms)


def smooth_ap(labels, x, temperature=0.1):
    s = 1 - reference.distances("cosine", x, x)
    terms = []
    for a, ps, ns in _rows(labels):
        values = []
        for p in ps:
            ahead = sum(_sigmoid((s[a, q] - s[a, p]) / temperature) for q in ps if q != p)
            others = sum(_sigmoid((s[a, n] - s[a, p]) / temperature) for n in ns)
            values.append((1 + ahead) / (1 + ahead + others))
        terms.append(1 - _mean(values))
    return _mean(terms)


def recall_at_k(labels, x, ks=(1, 2), temperature=0.1, rank_temperature=1.0):
    s = 1 - reference.distances("cosine", x, x)
    terms = []
    for a, ps, ns in _rows(labels):
        rank = {}
        for p in ps:
            others = [z for z in ps + ns if z != p]
            rank[p] = 1 + sum(_sigmoid((s[a, z] - s[a, p]) / temperature) for z in others)
        for k in ks:
            found = sum(_sigmoid((k - rank[p]) / rank_temperature) for p in ps)
            terms.append(1 - found / min(k, len(ps)))
    return _mean(terms)


def fast_ap(labels, x, bins=10):
    squared = 2 * reference.distances("cosine", x, x)
    centres, width = np.linspace(0, 4, bins + 1), 4 / bins
    terms = []
    for a, ps, ns in _rows(labels):
        share = {j: np.maximum(0, 1 - np.abs(squared[a, j] - centres) / width) for j in ps + ns}
        hits, all_ = sum(share[p] for p in ps), sum(share[j] for j in ps + ns)
        h, seen = np.cumsum(hits), np.cumsum(all_)
        parts = [hits[j] * h[j] / seen[j] for j in range(bins + 1) if seen[j]]
        terms.append(1 - sum(parts) / len(ps))
    return _mean(terms)


def _cosines(x, proxies):
    return 1 - reference.distances("cosine", x, proxies)


def _cross_entropy(labels, logits):
    return _mean(_lse(row) - row[label] for label, row in zip(labels, logits, strict=True))


def normalised_softmax(labels, x, proxies, scale=5.0):
    return _cross_entropy(labels, scale * _cosines(x, proxies))


def cosface(labels, x, proxies, margin=0.35, scale=5.0):
    c = _cosines(x, proxies)
    c[np.arange(len(x)), labels] -= margin
    return _cross_entropy(labels, scale * c)


def arcface(labels, x, proxies, margin=0.5, scale=5.0):
    c = _cosines(x, proxies)
    for i, label in enumerate(labels):
        angle = np.arccos(np.clip(c[i, label], -1, 1))
        beyond = angle > np.pi - margin
        c[i, label] = c[i, label] - margin * np.sin(margin) if beyond else np.cos(angle + margin)
    return _cross_entropy(labels, scale * c)


def proxy_nca(labels, x, proxies, scale=2.0):
    d = scale * (2 - 2 * _cosines(x, proxies))
    return _mean(
        d[i, label] + _lse(-d[i, z] for z in range(len(proxies)) if z != label)
        for i, label in enumerate(labels)
    )


def proxy_anchor(labels, x, proxies, margin=0.1, scale=4.0):
    s = _cosines(x, proxies)
    pull, push = [], []
    for c in range(len(proxies)):
        mine = [np.exp(-scale * (s[i, c] - margin)) for i in range(len(x)) if labels[i] == c]
        rest = [np.exp(scale * (s[i, c] + margin)) for i in range(len(x)) if labels[i] != c]
        pull += [np.log1p(sum(mine))] if mine else []
        push.append(np.log1p(sum(rest)))
    return _mean(pull) + _mean(push)


def _views(labels, x):
    """The rows of the first and of the second example of each class that has two."""
    found = [[i for i, label in enumerate(labels) if label == c] for c in sorted(set(labels))]
    firsts, seconds = zip(*(rows[:2] for rows in found if len(rows) > 1), strict=True)
    return x[list(firsts)], x[list(seconds)]


def barlow_twins(labels, x, redundancy=0.1):
    one, other = _views(labels, x)
    total = 0.0
    for i in range(x.shape[1]):
        for j in range(x.shape[1]):
            c = np.corrcoef(one[:, i], other[:, j])[0, 1]
            total += (1 - c) ** 2 if i == j else redundancy * c**2
    return total


def simsiam(labels, x, fixed=None):
    predicted, projected = _views(labels, x), _views(labels, x if fixed is None else fixed)
    terms = []
    for p1, p2, z1, z2 in zip(*predicted, *projected, strict=True):
        crossed = ((p1, z2), (p2, z1))
        terms.append(-_mean(p @ z / np.linalg.norm(p) / np.linalg.norm(z) for p, z in crossed))
    return _mean(terms)
