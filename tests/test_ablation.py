"""The ablation's rows can be run, and its committed figures are whole and what the page says."""

import importlib.util
import json
import pathlib
import statistics

import pytest

from metriclearn import LOSSES, MINERS, PROXY_LOSSES
from models.ranker.config import config
from models.ranker.definition import read_options

ROOT = pathlib.Path(__file__).parent.parent


def benchmark(name):
    """A module of benchmarks/, which are programs and not an installed package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ablation, first_hour = benchmark("ablation"), benchmark("first_hour")


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


def test_the_default_is_never_below_what_needs_no_training():
    runs = first_hour.read(ROOT / "docs" / "first_hour.jsonl")
    *rows, _, mean = first_hour.table(runs)
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert "\n".join(rows) in page and mean.split()[-1] in page
    seeds = [(one["set"], one["seed"]) for one in runs]
    names = {name for name, _ in seeds}
    assert len(names) >= 4 and sorted(seeds) == sorted((n, s) for n in names for s in range(5))
    for one in runs:
        assert one["against"] == max(one["untrained"], key=one["untrained"].get)
        assert one["interval"][0] <= one["difference"] <= one["interval"][1] >= 0
    assert float(mean.split()[-1]) >= 0.03
