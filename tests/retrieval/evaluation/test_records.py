"""Results that are written as JSON and read again."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.evaluation import suite
from retrieval.evaluation.figures import CategoryFigures, Figures, Files, Source
from retrieval.evaluation.records import Record
from trainer import files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner(Record):
    recall: dict[int, float]
    note: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer(Record):
    place: Inner | None = dataclasses.field(default=None, metadata={"inlined": True})
    count: int
    interval: tuple[float, float]
    inner: dict[str, Inner]
    listed: list[Inner]
    cost: float | None = None
    other: Any = None


floats = st.floats(allow_infinity=False)  # infinities become null, as NaN does
inners = st.builds(Inner, recall=st.dictionaries(st.integers(), floats), note=st.none() | st.text())
outers = st.builds(
    Outer,
    place=st.none() | inners,
    count=st.integers(),
    interval=st.tuples(floats, floats),
    inner=st.dictionaries(st.text(), inners),
    listed=st.lists(inners),
    cost=st.none() | floats,
    other=st.none() | st.lists(st.integers(), min_size=1),
)


def through_json(record):
    data = json.loads(json.dumps(files.plain(record.to_json()), allow_nan=False))
    return type(record).from_json(data)


@given(outers)
def test_any_record_comes_back(record):
    # The text of a record shows types, and NaN, which does not equal itself.
    assert repr(through_json(record)) == repr(record)


@pytest.mark.parametrize(
    "source",
    [
        None,
        Source(checkpoint="model-3", step=3, model="tiny"),
        Files(queries="q", catalogue=None, made_by=[Source(checkpoint=None, model="tiny")]),
    ],
)
def test_all_figures_come_back(clustered, source, tmp_path):
    items, _ = clustered
    (result, *_) = suite.evaluate(
        items, source=source, index="PQ2x4", reranking=["aqe", "k_reciprocal"], with_baselines=True
    ).values()
    files.write_json(tmp_path / "eval.json", result.figures.to_json())
    data = files.read_json(tmp_path / "eval.json")
    assert repr(Figures.from_json(data)) == repr(result.figures)
    assert set(data["recall@k"]) == {"1", "5", "10", "20"} and "source" not in data
    if isinstance(source, Files):
        assert (data["queries"], data["catalogue"]) == ("q", None)
        assert result.figures.models == source.made_by


def test_the_interval_of_a_category_is_named_after_its_k():
    given = {"num_queries": 3, "num_unanswerable": 1, "map_at_r": 0.5, "recall": {1: 0.5, 10: 1.0}}
    found = CategoryFigures(**given, interval=(0.25, 0.75))
    assert found.to_json()["recall@1_interval95"] == [0.25, 0.75]
    assert through_json(found) == found
    assert through_json(CategoryFigures(**given)) == CategoryFigures(**given)


def test_what_is_missing_is_named_and_what_is_unknown_ignored():
    record = Inner(recall={1: 0.5}, note=None)
    assert record.to_json() == {"recall@k": {1: 0.5}, "note": None}
    assert Inner.from_json(record.to_json() | {"new": 1}) == record
    with pytest.raises(KeyError, match="recall@k"):
        Inner.from_json({"note": ""})
