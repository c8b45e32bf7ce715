"""The one sentence of a report, in every case."""

import re

import numpy as np
import pytest

from retrieval.evaluation import verdict
from retrieval.evaluation.verdict import MORE, of_model, of_pair


def said(model, baselines, products):
    return of_model(np.array(model), np.array(products), baselines)


def shares(*rates, each=10):
    """(right bool [A], products [A]) of products whose queries are right at these rates."""
    right = [n < round(rate * each) for rate in rates for n in range(each)]
    return np.array(right), np.repeat(np.arange(len(rates)), each)


def test_better():
    model, products = shares(*[0.7, 0.8] * 10)
    found = said(model, {"raw pixels": shares(*[0.1] * 20)[0],
                         "frozen backbone": shares(*[0.5] * 20)[0]}, products)  # fmt: skip
    assert found.outcome == "better" and found.warning == ""
    assert re.fullmatch(
        r"Finds the right product first for 75% of photos \(7\d to 7\d%\)\. Without training it "
        r"would be 50% \(frozen backbone\): training gains 25 points \(2\d to 2\d\), which is "
        r"significant\.",
        found.sentence,
    )
    assert found.baseline == "frozen backbone" and found.difference == pytest.approx(0.25)
    low, high = found.difference_interval
    assert 0 < low <= 0.25 <= high and found.num_products == 20 and found.num_queries == 200


def test_worse():
    model, products = shares(*[0.4] * 17)
    found = said(model, {"frozen backbone with color": shares(*[0.7] * 17)[0],
                         "raw pixels": shares(*[0.1] * 17)[0]}, products)  # fmt: skip
    assert found.outcome == "worse" and found.warning == ""
    assert found.sentence == (
        "Finds the right product first for 40% of photos (40 to 40%). Without training it would "
        "be 70% (frozen backbone with color): training loses 30 points (30 to 30), which is "
        "significant. Do not use this model."
    )


def test_before_training():
    model, products = shares(*[0.7, 0.8] * 10)
    found = of_model(model, products, {"histogram": shares(*[0.5] * 20)[0]}, untrained=True)
    assert re.search(
        r"photos \(.*\)\. This is the model before training, at step 0\. The best baseline, "
        r"histogram, finds 50%: the model gains 25 points",
        found.sentence,
    )


def test_not_distinguishable():
    model, products = shares(*[1.0, 0.4] * 8, 0.7)
    other = shares(*[0.4, 1.0] * 8, 0.4)[0]
    found = said(model, {"frozen backbone": other, "raw pixels": shares(*[0] * 17)[0]}, products)
    assert found.outcome == "unclear" and found.warning == ""
    assert found.sentence.endswith(
        "Without training it would be 68% (frozen backbone): with these 17 products the difference "
        f"is not significant; {MORE}."
    )


def test_queries_of_one_product_are_not_independent():
    """Two products of a hundred queries each decide it: McNemar's test would find a difference."""
    model, products = shares(1, 1, *[0.5] * 8, each=100)
    other, _ = shares(0, 0.9, *[0.5] * 8, each=100)
    found = said(model, {"frozen backbone": other}, products)
    assert (found.difference, found.outcome) == (pytest.approx(0.11), "unclear")


def test_equal_in_practice():
    model, products = shares(*[0.5] * 30)
    found = said(model, {"color histogram": model}, products)
    assert found.outcome == "alike" and MORE not in found.sentence
    assert "50% (color histogram): the difference is at most 1 point" in found.sentence


def test_worse_than_pixels():
    model, products = shares(*[0.4] * 20)
    pixels = shares(*[0.5] * 20)[0]
    found = said(model, {"raw pixels": pixels, "frozen backbone": ~model}, products)
    assert found.outcome == "worse" and found.baseline == "frozen backbone"
    assert found.warning.startswith(
        "Worse than comparing raw pixels, which finds 50% (this model: 40%). First check"
    )
    unsure = shares(*[0.9, 0.0] * 10)[0]
    found = said(model, {"raw pixels": unsure}, products)
    assert found.outcome == "unclear"
    assert "; with these 20 products the difference is not significant." in found.warning


def test_few_products_have_no_interval():
    model, products = shares(0.9, 0.8, 1.0)
    found = said(model, {"raw pixels": shares(0, 0, 0)[0]}, products)
    assert found.outcome == "few products" and found.interval is None
    assert found.sentence == (
        "Finds the right product first for 90% of photos. Without training it would be 0% (raw "
        f"pixels): 3 products are too few for a conclusion; {MORE}."
    )


def test_one_product():
    found = said([True, True, False], {"raw pixels": np.array([False] * 3)}, ["a"] * 3)
    assert found.outcome == "one product" and found.baseline == "raw pixels"
    assert found.sentence == (
        "Finds the right product first for 67% of photos. All 3 are of one product, which is too "
        f"few for a conclusion: {MORE}."
    )


@pytest.mark.parametrize(("right", "words"), [(True, "finds"), (False, "does not find")])
def test_one_query(right, words):
    found = said([right], {"raw pixels": np.array([True])}, ["a"])
    assert found.outcome == "one query" and found.warning == ""
    assert found.sentence == (
        f"The only query {words} its product first. One query is too few for a conclusion: {MORE}."
    )


def test_no_baseline():
    model, products = shares(*[0.5] * 20)
    found = said(model, {}, products)
    assert (found.outcome, found.baseline, found.difference) == ("no baseline", "", None)
    assert found.sentence.startswith("Finds the right product first for 50% of photos (50 to 50%).")
    assert "no baseline" in found.sentence


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0, "0%"),
        (1, "100%"),
        (0.724, "72%"),
        (0.9996, "99.96%"),
        (0.004, "0.4%"),
        (0.0003, "0.03%"),
    ],
)
def test_only_all_is_all(rate, text):
    assert verdict.percent(rate) == text


def test_rates_that_differ_are_shown_different():
    assert verdict.percents(0.721, 0.724, distinct=True) == ["72.1%", "72.4%"]
    assert verdict.percents(0.721, 0.724, distinct=False) == ["72%", "72%"]


@pytest.mark.parametrize(
    ("interval", "queries", "products", "outcome", "ending"),
    [
        ((0.02, 0.12), 99, 17, "better",
         "new is better than old: new finds the right product first for 72% of photos, old for "
         "65%. The difference is 7 points (2 to 12)."),
        ((-0.12, -0.02), 99, 17, "worse", "new is worse than old: "),
        ((-0.01, 0.12), 99, 17, "unclear",
         f"with these 17 products the difference is not significant; {MORE}."),
        ((-0.004, 0.01), 99, 170, "alike", "the difference is at most 1 point."),
        ((0.07, 0.07), 99, 4, "few products", f"4 products are too few for a conclusion; {MORE}."),
        ((0.07, 0.07), 99, 1, "one product", "all photos are of one product, which is too few"),
        ((1, 1), 1, 1, "one query", f"one query is too few for a conclusion; {MORE}."),
    ],
)  # fmt: skip
def test_two_models(interval, queries, products, outcome, ending):
    found = of_pair(("old", "new"), (0.65, 0.72), 0.07, interval, queries, products)
    assert found[0] == outcome and ending in found[1]
    assert ("cannot be distinguished" in found[1]) == (outcome not in ("better", "worse", "alike"))
