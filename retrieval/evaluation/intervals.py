"""Confidence intervals by a bootstrap over products."""

import numpy as np

REPLICATES = 1000
FEW = 5  # with fewer products an interval is meaningless


def per_query(ranking):
    """The main figures of every answerable query, as {name: float64 [A]}."""
    ok = ranking.answerable
    first = ranking.first[ok]
    return {
        **{f"recall@{k}": (first <= k).astype(float) for k in ranking.ks},
        "map@r": ranking.average_precision[ok],
        "mrr": 1 / first,
    }


def intervals(ranking, products, replicates=REPLICATES, seed=0):
    """95% percentile intervals of the main figures.

    Products, not queries, are drawn with replacement, because queries of one product are
    correlated.

    Args:
      ranking: a `metrics.Ranking` of Q queries.
      products: [Q], the product of each query.
      replicates: number of bootstrap samples.
      seed: seed of the random generator.

    Returns:
      {figure: (low, high)}.
    """
    values = per_query(ranking)
    columns = np.stack(list(values.values()), 1)
    drawn = bootstrap(columns, products[ranking.answerable], replicates, seed)
    return dict(zip(values, percentiles(drawn), strict=True))


def percentiles(drawn):
    """The central 95% of each column of `drawn` [replicates, M], as [(low, high)] * M."""
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def bootstrap(values, clusters, replicates=REPLICATES, seed=0):
    """Means of resampled data. Whole clusters are drawn with replacement.

    Args:
      values: [Q, M], M figures of Q queries.
      clusters: [Q], such as the product of each query.
      replicates: number of samples.
      seed: seed of the random generator.

    Returns:
      float64 [replicates, M].
    """
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
