"""`python -m retrieval.eval` as a user runs it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]


def run(module, *arguments, cwd):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(tiny):
    done = run("retrieval.eval", "--model=tiny", cwd=tiny)
    assert done.returncode == 0, done.stderr
    return done, tiny / "experiments/exp-tiny/analysis"


def test_figures_and_counts(evaluated):
    done, folder = evaluated
    result = json.loads((folder / "model-3-eval.json").read_text())
    assert (result["num_queries"], result["num_catalogue"]) == (22, 25)
    assert result["num_unanswerable"] == 2  # products 10 and 11 are not in the catalogue
    assert set(result["recall@k"]) == {"1", "5", "10", "20"}
    assert 0 < result["map@r"] <= result["recall@k"]["20"] <= 1
    assert set(result["raw_pixels"]["recall@k"]) == {"1", "5", "10", "20"}
    assert f"{result['recall@k']['1']:.3f}" in done.stdout
    assert "22 queries against 25 catalogue items; 2 queries" in done.stdout


def test_top_retrieved_agrees_with_the_figures(evaluated):
    _, folder = evaluated
    result = json.loads((folder / "model-3-eval.json").read_text())
    lists = json.loads((folder / "model-3-top_retrieved.json").read_text())
    assert lists[0]["media"] == "1/p<10>"
    assert all(len(entry["results"]) == 20 for entry in lists)
    for k in (1, 5):
        hits = sum(any(item["relevant"] for item in entry["results"][:k]) for entry in lists)
        assert hits / 20 == pytest.approx(result["recall@k"][str(k)])
    scores = [item["score"] for item in lists[0]["results"]]
    assert scores == sorted(scores, reverse=True)


def test_picture_is_a_picture(evaluated):
    _, folder = evaluated
    picture = Image.open(folder / "model-3-top_retrieved.png")
    colors = {color for _, color in picture.convert("RGB").getcolors(2**24)}
    assert {(0x2E, 0x8B, 0x57), (0xC0, 0x39, 0x2B)} <= colors


def test_no_checkpoint_says_how_to_train(tiny):
    done = run("retrieval.eval", "--model=tiny", "--trainer.experiment_name=none", cwd=tiny)
    assert done.returncode == 1
    assert "python -m trainer.main --model=tiny" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_of_another_shape_is_named(tiny):
    done = run("retrieval.eval", "--model=tiny", "--model.size=4", cwd=tiny)
    assert done.returncode == 1
    assert "w is [64, 16] there and [64, 4] here" in done.stderr
    assert "Traceback" not in done.stderr
