"""`retrieval.compare`, as a function and as a user runs it."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from retrieval import compare
from retrieval.catalogue import index
from retrieval.embeddings import store
from retrieval.evaluation import paired
from retrieval.evaluation.figures import evaluate
from retrieval.reports import outputs

ROOT = pathlib.Path(__file__).parents[2]


def write_evaluation(folder, noise, ids, labels, truth):
    random = np.random.default_rng(int(noise * 100))
    points = (truth[labels] + noise * random.normal(size=(len(labels), 6))).astype(np.float32)
    items = store.Embedded(points, ids, labels.astype(str), np.full(len(labels), ""))
    result = evaluate(items)
    folder.mkdir()
    outputs.write_queries(folder / "embeddings-queries.csv", items, items, result)
    lists = outputs.top_retrieved(items, items, result.scores, result.rows)
    outputs.write_json_list(folder / "embeddings-top_retrieved.json", lists)
    outputs.write_figures(folder / "embeddings", result.figures.to_json())
    return result


def test_differences_are_paired(tmp_path, capsys):
    random = np.random.default_rng(0)
    labels, truth = random.integers(0, 20, 80), random.normal(size=(20, 6))
    ids = np.array([f"<{n}>" for n in range(80)])
    noisy = write_evaluation(tmp_path / "a", 0.9, ids, labels, truth)
    clean = write_evaluation(tmp_path / "b", 0.3, ids, labels, truth)
    compare.main([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    result = json.loads((tmp_path / "out/compare.json").read_text())
    one = result["difference"]["recall@1"]
    expected = clean.figures.recall[1] - noisy.figures.recall[1]
    assert one["difference"] == pytest.approx(expected)
    assert 0 < one["interval95"][0] <= expected <= one["interval95"][1]
    won, lost = len(result["won"]), len(result["lost"])
    assert (won - lost) / result["num_queries"] == pytest.approx(expected)
    assert result["outcome"] == "better" and result["verdict"].startswith("b is better than a: ")
    page = (tmp_path / "out/compare.html").read_text()
    assert "&lt;3&gt;" in page and "<3>" not in page
    assert page.count(result["verdict"]) == 1 and "McNemar" not in page
    printed = capsys.readouterr().out
    assert printed.startswith(result["verdict"]) and " p = " not in printed
    # Another catalogue must not pass for a better model.
    assert result["unlike"] == ""
    figures = clean.figures.to_json()
    outputs.write_figures(tmp_path / "b/embeddings", figures | {"num_catalogue": 9000})
    compare.main([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    said = "a searched 80 catalogue items by cosine, b 9,000 catalogue items by cosine"
    assert said in capsys.readouterr().err and said in (tmp_path / "out/compare.html").read_text()
    table = (tmp_path / "b/embeddings-queries.csv").read_text()
    one = table.splitlines()[1].split(",")
    more = ",".join([*one[:3], str(int(one[3]) + 1), *one[4:]])
    (tmp_path / "b/embeddings-queries.csv").write_text(table.replace(",".join(one), more))
    with pytest.raises(ValueError, match=r"queries\.csv is not the one that was written with it"):
        paired.load(tmp_path / "b")
    outputs.write_figures(tmp_path / "b/embeddings", figures)
    pair = [paired.load(tmp_path / side) for side in "ab"]
    assert paired.compare(*pair).unlike.startswith("a and b searched different catalogues")
    # Against itself nothing differs.
    same = paired.compare(*[paired.load(tmp_path / "a")] * 2)
    assert same.difference["map@r"].interval == (0, 0) and same.outcome == "alike"


def test_new_queries_against_an_old_catalogue(models, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "retrieval.compare", f"--output={tmp_path}/out",
         *(f"--{name}={folder}" for name, folder in models.items())],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out/compare.json").read_text())
    for figure, rates in result["backward"].items():
        assert rates["old"] < rates["new_on_old"] < rates["new"], figure
        share = (rates["new_on_old"] - rates["old"]) / (rates["new"] - rates["old"])
        assert rates["share_of_gain"] == pytest.approx(share)
    pair = json.loads((tmp_path / "out/new_on_old/embeddings-eval.json").read_text())
    assert pair["recall@k"]["1"] == result["difference"]["recall@1"]["b"]
    assert pair["queries"].endswith("new_queries") and pair["catalogue"].endswith("old_catalogue")
    page = (tmp_path / "out/compare.html").read_text()
    assert "Backward compatibility" in page and "Share of the gain" in page
    assert "Share of the gain" in done.stdout


def test_the_old_catalogue_may_be_an_index(models, tmp_path):
    index.build(models["old_catalogue"], tmp_path / "index", "Flat", recall=0.7)
    stores = {k: v for k, v in models.items() if k != "new_catalogue"}
    stores["old_catalogue"] = str(tmp_path / "index")
    compare.stored(stores, tmp_path / "out")
    figures = json.loads((tmp_path / "out/old/embeddings-eval.json").read_text())
    assert figures["index"]["factory"] == "Flat"
    backward = json.loads((tmp_path / "out/compare.json").read_text())["backward"]
    assert set(backward["recall@1"]) == {"old", "new_on_old"}
    assert backward["recall@1"] == backward["recall@1 through the index"]


def test_stores_that_are_mixed_up_leave_no_output(models, tmp_path):
    stores = {k: v for k, v in models.items() if k != "new_catalogue"}
    with pytest.raises(ValueError, match="must be those of the old model"):
        compare.stored(stores | {"old_queries": models["new_queries"]}, tmp_path / "no")
    assert not (tmp_path / "no").exists()
