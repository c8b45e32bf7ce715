"""The ablation's rows can be run, and its committed figures are whole and what the page says."""

import importlib.util
import json
import pathlib
import statistics

import pytest

from metriclearn import LOSSES, MINERS, PROXY_LOSSES
from models.ranker.config import config
from models.ranker.definition import read_options

# Benchmarks are programs, not an installed package.
_PATH = pathlib.Path(__file__).parent.parent / "benchmarks" / "ablation.py"
_SPEC = importlib.util.spec_from_file_location("ablation", _PATH)
ablation = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(ablation)


@pytest.fixture
def results():
    return json.loads(ablation.RESULTS.read_text(encoding="utf-8"))["rows"]


@pytest.mark.parametrize("row", ablation.ROWS, ids=", ".join)
def test_a_rows_flags_are_the_rankers(row):
    before = config.to_dict()
    try:
        ablation.parse(ablation.flags_of(row, 0.25, 7))
        assert config["model.lr_schedule.cosine.value"] == 0.25
        assert config["trainer.random_seed"] == "7"
        assert config["model.random_within_class"] == float(row[2])
        read_options("model.loss.options", {**LOSSES, **PROXY_LOSSES}[config["model.loss"]])
        read_options("model.miner.options", MINERS[config["model.miner"]])
    finally:
        config.restore(before)


def test_every_row_has_three_seeds_at_the_rate_that_seed_0_chose(results):
    assert [(r["data"], r["method"], r["single_category"]) for r in results] == ablation.ROWS
    for row, key in zip(results, ablation.ROWS, strict=True):
        assert row["flags"] == ablation.flags_of(key, 0, 0)[:-2]
        tried = {r["learning_rate"]: r["recall@1"] for r in row["runs"] if r["seed"] == 0}
        assert sorted(tried) == sorted(ablation.rates(key))
        assert tried[row["learning_rate"]] == max(tried.values())
        kept = [r for r in row["runs"] if r["learning_rate"] == row["learning_rate"]]
        by_seed = {r["seed"]: r["recall@1"] for r in kept}
        assert row["seeds"] == [by_seed[seed] for seed in ablation.SEEDS]
        assert row["recall@1"] == pytest.approx(statistics.mean(row["seeds"]), abs=1e-4)


def test_the_pages_table_is_that_of_the_figures(results):
    page = (ablation.DOCS / "results.md").read_text(encoding="utf-8")
    assert ablation.table(results) in page
    assert ablation.PICTURE.stat().st_size < 300_000
    assert f"({ablation.PICTURE.name})" in page
