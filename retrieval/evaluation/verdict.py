"""A verdict on an evaluation in one plain sentence, and the figures behind it.

The test is the 95% interval of the difference in recall@1, paired by query, from a bootstrap over
products. Queries of one product succeed and fail together. A test that treats them as independent
(McNemar's) finds differences that do not hold for other products.
"""

import dataclasses

import numpy as np

from retrieval.evaluation.intervals import FEW, bootstrap, percentiles
from retrieval.evaluation.records import Record

ALIKE = 0.01  # differences up to this size are treated as none
MORE = "collect more products, not more photos"
OPPOSITE = {"better": "worse", "worse": "better"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict(Record):
    """The verdict on a model.

    Attributes:
      sentence: the verdict.
      warning: a further sentence if raw pixels are better; '' otherwise.
      outcome: 'better' or 'worse' than the best baseline, 'alike' (equal in practice), 'unclear'
        (not significant), 'few products', 'one product', 'one query' or 'no baseline'.
      rate: fraction of the answerable queries whose first result is relevant.
      interval: its 95% interval, None for fewer than `intervals.FEW` products.
      num_queries, num_products: numbers of answerable queries and of their products.
      baseline: title of the best baseline, '' if there is none.
      baseline_rate: rate of that baseline.
      difference: rate - baseline_rate.
      difference_interval: its 95% interval, None for few products.
    """

    sentence: str
    warning: str = ""
    outcome: str
    rate: float
    interval: tuple[float, float] | None = None
    num_queries: int
    num_products: int
    baseline: str = ""
    baseline_rate: float | None = None
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None


def of_model(right, products, baselines, *, untrained=False) -> Verdict:
    """The verdict on a model, compared with the baselines.

    Args:
      right: bool [A], whether the first result is relevant, for every answerable query.
      products: [A], the product of each.
      baselines: {title: bool [A]}, the same for each baseline; 'raw pixels' is also used for the
        warning.
      untrained: whether the model is that of step 0.
    """
    right = np.asarray(right, float)
    others = {title: np.asarray(each, float) for title, each in baselines.items()}
    count, rate = len(np.unique(products)), float(right.mean())
    spans = [None] * (1 + len(others))
    if count >= FEW:
        columns = np.stack([right, *(right - each for each in others.values())], 1)
        spans = percentiles(bootstrap(columns, products))
    interval, *differences = spans
    differences = dict(zip(others, differences, strict=True))
    facts = {"rate": rate, "interval": interval, "num_queries": len(right), "num_products": count}
    if len(right) == 1:
        found = "finds its product first" if rate else "does not find its product first"
        sentence = f"The only query {found}. One query is too few for a conclusion: {MORE}."
        return Verdict(sentence=sentence, outcome="one query", **facts)
    sentence = f"Finds the right product first for {percent(rate)} of photos{_range(interval)}."
    rates = {title: float(each.mean()) for title, each in others.items()}
    best = max(rates, key=rates.get, default="")
    if best:
        facts |= {"baseline": best, "baseline_rate": rates[best], "difference": rate - rates[best]}
        facts["difference_interval"] = differences[best]
    if count == 1:
        sentence += f" All {len(right):,} are of one product, which is too few for a conclusion: "
        return Verdict(sentence=f"{sentence}{MORE}.", outcome="one product", **facts)
    if not best:
        sentence += " There is no baseline, since stored embeddings have no images: evaluate the "
        sentence += "model (--model) to compare it with search without training."
        return Verdict(sentence=sentence, outcome="no baseline", **facts)
    outcome = outcome_of(differences[best], count)
    rate_text, best_text = percents(rate, rates[best], distinct=outcome in OPPOSITE)
    sentence = f"Finds the right product first for {rate_text} of photos{_range(interval)}. "
    if untrained:
        sentence += "This is the model before training, at step 0. "
        sentence += f"The best baseline, {best}, finds {best_text}: "
    else:
        sentence += f"Without training it would be {best_text} ({best}): "
    points = points_of(rate - rates[best], differences[best])
    what = "the model" if untrained else "training"
    sentence += {
        "better": f"{what} gains {points}, which is significant.",
        "worse": f"{what} loses {points}, which is significant. Do not use this model.",
    }.get(outcome) or f"{why_not(outcome, count)}."
    warning = ""
    pixels = rates.get("raw pixels", 0.0)
    if rate < pixels:
        sure = outcome_of(differences["raw pixels"], count) == "worse"
        here, there = percents(rate, pixels, distinct=True)
        warning = f"Worse than comparing raw pixels, which finds {there} (this model: {here})"
        warning += "." if sure else f"; with {_these(count)} the difference is not significant."
        warning += " First check the labels, the loss and the learning rate."
    return Verdict(sentence=sentence, warning=warning, outcome=outcome, **facts)


def of_pair(names, rates, difference, interval, num_queries, num_products) -> tuple[str, str]:
    """The verdict on B against A.

    Args:
      names: (A, B).
      rates: fractions of queries whose first result is relevant, (in A, in B).
      difference, interval: B - A and its 95% interval.
      num_queries, num_products: numbers of queries that both can answer, and of their products.

    Returns:
      (outcome as in `Verdict`, sentence).
    """
    a, b = names
    outcome = outcome_of(interval, num_products)
    outcome = "one query" if num_queries == 1 else outcome
    in_a, in_b = percents(*rates, distinct=outcome in OPPOSITE)
    finds = f"{b} finds the right product first for {in_b} of photos, {a} for {in_a}"
    if outcome in OPPOSITE:
        points = points_of(difference, interval)
        return outcome, f"{b} is {outcome} than {a}: {finds}. The difference is {points}."
    if outcome == "one query":
        why = f"one query is too few for a conclusion; {MORE}"
    elif outcome == "one product":
        why = f"all photos are of one product, which is too few for a conclusion; {MORE}"
    else:
        why = why_not(outcome, num_products)
    if outcome == "alike":
        return outcome, f"{b} and {a} are equally good: {finds}; {why}."
    return outcome, f"{b} and {a} cannot be distinguished: {finds}; {why}."


def outcome_of(interval, num_products) -> str:
    """The outcome by the 95% interval of a difference, see `Verdict.outcome`."""
    if num_products < FEW:
        return "one product" if num_products == 1 else "few products"
    low, high = interval
    if low > 0 or high < 0:
        return "better" if low > 0 else "worse"
    return "alike" if max(-low, high) <= ALIKE else "unclear"


def why_not(outcome, num_products) -> str:
    """Why a difference is not significant, and what to do."""
    if outcome == "alike":
        return "the difference is at most 1 point"
    if outcome == "few products":
        return f"{num_products} products are too few for a conclusion; {MORE}"
    return f"with {_these(num_products)} the difference is not significant; {MORE}"


def percent(rate, digits=0) -> str:
    """A rate as a percentage; only 0 and 1 are 0% and 100%."""
    text = f"{100 * rate:.{digits}f}"
    if digits < 4 and float(text) in (0, 100) and rate not in (0, 1):
        return percent(rate, digits + 1)
    return f"{text}%"


def percents(*rates, distinct) -> list[str]:
    """Rates as percentages, with a decimal if they must differ and otherwise would not."""
    shown = [percent(rate) for rate in rates]
    if distinct and len(set(shown)) < len(shown):
        shown = [percent(rate, 1) for rate in rates]
    return shown


def points_of(difference, interval) -> str:
    """The size of a significant difference and of its interval, in percentage points."""
    sizes = sorted(100 * abs(value) for value in (interval or ()))
    digits = 0 if not sizes or sizes[0] >= 1 else 1
    size = f"{100 * abs(difference):.{digits}f}"
    span = " to ".join(f"{value:.{digits}f}" for value in sizes)
    return f"{size} point{'' if size == '1' else 's'}" + (f" ({span})" if span else "")


def _range(interval):
    if interval is None:
        return ""
    low, high = (percent(value).removesuffix("%") for value in interval)
    return f" ({low} to {high}%)"


def _these(count):
    return f"these {count:,} products"
