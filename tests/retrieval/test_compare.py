"""Comparing two evaluations of the same queries."""

import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from retrieval import compare, evaluation, files, report, store
from retrieval.eval import top_retrieved

ROOT = pathlib.Path(__file__).parents[2]


def write_evaluation(folder, noise, ids, labels, truth):
    random = np.random.default_rng(int(noise * 100))
    points = (truth[labels] + noise * random.normal(size=(len(labels), 6))).astype(np.float32)
    items = store.Embedded(points, ids, labels.astype(str), np.full(len(labels), ""))
    result = evaluation.evaluate(items)
    folder.mkdir()
    files.write_json(folder / "embeddings-eval.json", result.figures)
    report.write_csv(folder / "embeddings-queries.csv", items, items, result)
    lists = top_retrieved(items, items, result.scores, result.rows)
    files.write_json_list(folder / "embeddings-top_retrieved.json", lists)
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
    expected = clean.figures["recall@k"][1] - noisy.figures["recall@k"][1]
    assert one["difference"] == pytest.approx(expected)
    assert 0 < one["interval95"][0] <= expected <= one["interval95"][1]
    test = result["mcnemar"]
    assert len(result["won"]) == test["won"] and len(result["lost"]) == test["lost"]
    assert (test["won"] - test["lost"]) / result["num_queries"] == pytest.approx(expected)
    page = (tmp_path / "out/compare.html").read_text()
    assert "&lt;3&gt;" in page and "<3>" not in page
    assert "McNemar" in capsys.readouterr().out
    # Against itself nothing differs.
    same = compare.compare(*[compare.load(tmp_path / "a")] * 2)
    assert same["difference"]["map@r"]["interval95"] == [0, 0] and same["mcnemar"]["p_value"] == 1


def write_store(folder, points, names, labels):
    folder.mkdir()
    manifest = store.begin(folder, {"checkpoint_sha256": folder.name})
    empty = np.full(len(names), "")
    store.append(folder, manifest, store.Embedded(points, names, labels.astype(str), empty), 1)
    store.finish(folder, manifest)
    return str(folder)


def test_new_queries_against_an_old_catalogue(tmp_path):
    """As the command line runs it: the new model is better, and half compatible with the old."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 4)
    truth = random.normal(size=(30, 8))
    turn = np.linalg.qr(random.normal(size=(8, 8)))[0]
    names = {kind: np.array([f"{kind}<{n}>" for n in range(120)]) for kind in "qc"}
    arguments, noise = [], {"old": 1.4, "new": 0.3}
    for model, amount in noise.items():
        for kind, name in (("q", "queries"), ("c", "catalogue")):
            points = truth[labels] + amount * random.normal(size=(120, 8))
            if model == "new":
                points = points + 0.2 * points @ turn
            folder = tmp_path / f"{model}_{name}"
            write_store(folder, points.astype(np.float32), names[kind], labels)
            arguments.append(f"--{folder.name}={folder}")
    done = subprocess.run(
        [sys.executable, "-m", "retrieval.compare", *arguments, f"--output={tmp_path}/out"],
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
    assert "Backward compatibility" in page and "share of the gain" in page
    # Without the new catalogue there is no gain to compare with; other dimensions are named.
    short = write_store(tmp_path / "short", np.ones((120, 5), np.float32), names["q"], labels)
    stores = {"old_queries": str(tmp_path / "old_queries"), "new_queries": short}
    stores["old_catalogue"] = str(tmp_path / "old_catalogue")
    with pytest.raises(ValueError, match="short against .*: queries have 5 dimensions and the"):
        compare.backward(stores, tmp_path / "no")


def test_mcnemar_against_the_binomial():
    for won, lost in ((0, 0), (7, 2), (2, 7), (5, 5), (900, 800)):
        n = won + lost
        tail = sum(math.comb(n, i) for i in range(min(won, lost) + 1)) / 2**n
        assert compare.mcnemar(won, lost) == pytest.approx(min(1, 2 * tail))


def test_what_cannot_be_compared_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no …-eval\.json"):
        compare.load(tmp_path)
    (tmp_path / "model-1-eval.json").write_text("{")
    with pytest.raises(ValueError, match=r"model-1-eval\.json: cannot be read"):
        compare.load(tmp_path)
