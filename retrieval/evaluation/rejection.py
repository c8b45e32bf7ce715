"""The effect of rejecting first results below a score ("no match")."""

import dataclasses

import numpy as np

from retrieval.evaluation.records import Record

PRECISION = 0.95
STEPS = 200  # maximum number of thresholds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejection(Record):
    """The effect of not showing first results that score below a threshold.

    A shown result is right if it is relevant. Unanswerable queries are included: any result shown
    for them is wrong. Entry i of each list is for `scores[i]`. For euclidean these are distances,
    and results beyond them are not shown.

    Attributes:
      scores: thresholds, the most lenient first; a result with exactly this score is shown.
      shown: fraction of all queries for which a result is shown.
      shown_precision: fraction of the shown results that are right.
      shown_recall: fraction of the right results that are shown.
      rejected_precision: fraction of the rejected results that are wrong; 1 if none is rejected.
      rejected_recall: fraction of the wrong results that are rejected; 1 if none is wrong.
      keeps: index of the most lenient threshold whose precision is at least `PRECISION`, None if
        there is none. It was chosen on these queries; on others the precision may be lower.
    """

    scores: list[float]
    shown: list[float]
    shown_precision: list[float]
    shown_recall: list[float]
    rejected_precision: list[float]
    rejected_recall: list[float]
    keeps: int | None = None


def of(queries, catalogue, result) -> Rejection | None:
    """Evaluates thresholds on the first result of every query.

    Args:
      queries, catalogue: `Embedded`.
      result: their `figures.Evaluation`.
    """
    found = result.rows[:, 0] >= 0
    score = result.scores[found, 0].astype(float)
    right = catalogue.products[result.rows[found, 0]] == queries.products[found]
    if not len(score):
        return None
    score = _rounded_down(score)
    order = np.argsort(score, kind="stable")
    score, right = score[order], right[order]
    levels, start = np.unique(score, return_index=True)
    shown = len(score) - start
    good = np.cumsum(right[::-1])[::-1][start]
    bad_rejected = start - (right.sum() - good)
    precision = good / shown
    kept = np.flatnonzero(precision >= PRECISION)
    chosen = np.unique(np.linspace(0, len(levels) - 1, STEPS).round().astype(int))
    chosen = np.union1d(chosen, kept[:1])
    sign = -1 if result.figures.similarity == "euclidean" else 1
    wrong = (~right).sum()
    shares = {
        "scores": sign * levels + 0.0,
        "shown": shown / len(queries),
        "shown_precision": precision,
        "shown_recall": good / right.sum() if right.any() else np.zeros(len(levels)),
        "rejected_precision": np.where(start > 0, bad_rejected / np.maximum(start, 1), 1.0),
        "rejected_recall": bad_rejected / wrong if wrong else np.ones(len(levels)),
    }
    keeps = int(np.searchsorted(chosen, kept[0])) if len(kept) else None
    return Rejection(**{k: v[chosen].tolist() for k, v in shares.items()}, keeps=keeps)


def _rounded_down(score):
    """Rounds scores down to five digits of their range, so that a score passes its own threshold.

    The displayed threshold is then the exact one.
    """
    span = max(np.ptp(score), abs(score).max() * 1e-4, 1e-30)
    decimals = 4 - int(np.floor(np.log10(span)))
    unit = 10.0**-decimals
    rounded = np.round(np.floor(score / unit + 0.5) * unit, decimals)
    return np.where(rounded > score, np.round(rounded - unit, decimals), rounded)
