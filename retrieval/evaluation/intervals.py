"""Confidence intervals and significance, by bootstrap over products and by exact tests."""

import math

import numpy as np

REPLICATES = 1000


def per_query(ranking):
    """The headline figures of every answerable query: {name: float64 [A]}."""
    ok = ranking.answerable
    first = ranking.first[ok]
    return {
        **{f"recall@{k}": (first <= k).astype(float) for k in ranking.ks},
        "map@r": ranking.average_precision[ok],
        "mrr": 1 / first,
    }


def intervals(ranking, products, replicates=REPLICATES, seed=0):
    """95% percentile intervals {figure: [low, high]} by a bootstrap over products.

    Queries of one product are alike, so that products, not queries, are drawn with replacement.
    """
    values = per_query(ranking)
    rates = bootstrap(
        np.stack(list(values.values()), 1), products[ranking.answerable], replicates, seed
    )
    low, high = np.percentile(rates, [2.5, 97.5], axis=0)
    return {name: [float(a), float(b)] for name, a, b in zip(values, low, high, strict=True)}


def bootstrap(values, clusters, replicates=REPLICATES, seed=0):
    """Means [replicates, M] of values [Q, M] when whole clusters are drawn with replacement."""
    codes = np.unique(clusters, return_inverse=True)[1]
    count = codes.max(initial=-1) + 1
    columns = [*values.T, np.ones(len(values))]
    totals = np.stack([np.bincount(codes, column, minlength=count) for column in columns], 1)
    random = np.random.default_rng(seed)
    means = np.empty((replicates, values.shape[1]))
    for i in range(replicates):
        drawn = np.bincount(random.integers(0, count, count), minlength=count) @ totals
        means[i] = drawn[:-1] / drawn[-1]
    return means


def mcnemar(won, lost):
    """Two-sided exact p-value that as many queries are won as lost (McNemar, 1947)."""
    n, k = won + lost, min(won, lost)
    log = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k + 1)]
    tail = math.fsum(math.exp(value - n * math.log(2)) for value in log)
    return min(1.0, 2 * tail)
