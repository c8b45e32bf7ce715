"""Comparing two evaluations of the same queries."""

import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from retrieval import compare
from retrieval.catalogue import index
from retrieval.embeddings import store
from retrieval.evaluation import backward, inputs, intervals, paired
from retrieval.evaluation.figures import evaluate
from retrieval.reports import outputs
from trainer import files

ROOT = pathlib.Path(__file__).parents[2]


def write_evaluation(folder, noise, ids, labels, truth):
    random = np.random.default_rng(int(noise * 100))
    points = (truth[labels] + noise * random.normal(size=(len(labels), 6))).astype(np.float32)
    items = store.Embedded(points, ids, labels.astype(str), np.full(len(labels), ""))
    result = evaluate(items)
    folder.mkdir()
    files.write_json(folder / "embeddings-eval.json", result.figures)
    outputs.write_queries(folder / "embeddings-queries.csv", items, items, result)
    lists = outputs.top_retrieved(items, items, result.scores, result.rows)
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
    # Another catalogue is no other model.
    assert result["unlike"] == ""
    figures = json.loads((tmp_path / "b/embeddings-eval.json").read_text())
    files.write_json(tmp_path / "b/embeddings-eval.json", figures | {"num_catalogue": 9000})
    compare.main([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    said = "A searched 80 catalogue items by cosine, B 9,000 catalogue items by cosine"
    assert said in capsys.readouterr().err and said in (tmp_path / "out/compare.html").read_text()
    files.write_json(tmp_path / "b/embeddings-eval.json", figures)
    table = (tmp_path / "b/embeddings-queries.csv").read_text()
    one = table.splitlines()[1].split(",")
    more = ",".join([*one[:3], str(int(one[3]) + 1), *one[4:]])
    (tmp_path / "b/embeddings-queries.csv").write_text(table.replace(",".join(one), more))
    pair = [paired.load(tmp_path / side) for side in "ab"]
    assert paired.compare(*pair)["unlike"].startswith("A and B searched catalogues of other items")
    # Against itself nothing differs.
    same = paired.compare(*[paired.load(tmp_path / "a")] * 2)
    assert same["difference"]["map@r"]["interval95"] == [0, 0] and same["mcnemar"]["p_value"] == 1


def write_store(folder, points, names, labels, weights):
    folder.mkdir()
    manifest = store.begin(folder, {"checkpoint_sha256": weights})
    empty = np.full(len(names), "")
    store.append(folder, manifest, store.Embedded(points, names, labels.astype(str), empty), 1)
    store.finish(folder, manifest)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Stores {'old_queries', ...} of a model, and of a better one half compatible with it."""
    folder, random = tmp_path_factory.mktemp("models"), np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 4)
    truth = random.normal(size=(30, 8))
    turn = np.linalg.qr(random.normal(size=(8, 8)))[0]
    names = {kind: np.array([f"{kind}<{n}>" for n in range(120)]) for kind in "qc"}
    stores, noise = {}, {"old": 1.4, "new": 0.3}
    for model, amount in noise.items():
        for kind, name in (("q", "queries"), ("c", "catalogue")):
            points = truth[labels] + amount * random.normal(size=(120, 8))
            if model == "new":
                points = points + 0.2 * points @ turn
            place = folder / f"{model}_{name}"
            stores[place.name] = write_store(
                place, points.astype(np.float32), names[kind], labels, model
            )
    return stores


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


@pytest.mark.parametrize(("factory", "lossless"), [("Flat", True), ("IVF4,SQ4", False)])
def test_an_index_stands_for_the_old_catalogue(models, tmp_path, factory, lossless):
    """Its items are ranked as it keeps them, and searched as it searches; removed ones are gone."""
    folder, kept = (
        str(tmp_path / "index"),
        {k: v for k, v in models.items() if k != "new_catalogue"},
    )
    index.build(models["old_catalogue"], folder, factory, recall=0.7)
    of_index, _ = backward.evaluate(kept | {"old_catalogue": folder}, tmp_path / "out")
    of_store, _ = backward.evaluate(kept, tmp_path / "same")
    found = of_index["recall@1 through the index"]
    for name in ("old", "new_on_old"):
        exact = of_store["recall@5"][name]
        if lossless:
            assert found[name] == of_index["recall@1"][name] == of_store["recall@1"][name]
        assert of_index["recall@5"][name] == pytest.approx(exact, abs=0 if lossless else 0.1)
    told = json.loads((tmp_path / "out/old/embeddings-eval.json").read_text())
    assert told["index"]["factory"] == factory
    index.remove(["c<7>"], folder)
    left = inputs.load(folder)
    assert len(left) == 119 and "c<7>" not in left.ids and "c<8>" in left.ids
    index.build(models["old_catalogue"], folder, "IVF4,RaBitQ", recall=0.1)
    with pytest.raises(ValueError, match="RaBitQ cannot return its vectors .*: name the store"):
        inputs.load(folder)


def test_what_is_mixed_up_is_refused(models, tmp_path):
    short = write_store(
        tmp_path / "short", np.ones((2, 5), np.float32), np.array(["1", "2"]), np.arange(2), "new"
    )
    kept = {k: v for k, v in models.items() if k != "new_catalogue"}
    with pytest.raises(ValueError, match="--new_queries=.*short has 5 dimensions and --old_cata"):
        backward.evaluate(kept | {"new_queries": short}, tmp_path / "no")
    with pytest.raises(ValueError, match="must be those of the old model"):
        backward.evaluate(kept | {"old_queries": models["new_queries"]}, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_pictures_come_from_the_evaluated_model(tiny, tmp_path, monkeypatch):
    """From its own configuration, wherever the evaluation lies."""
    monkeypatch.chdir(tiny)
    monkeypatch.syspath_prepend(tiny)
    figures = {"model": "tiny", "checkpoint": str(tiny / "experiments/exp-tiny/checkpoint/model-3")}
    found = compare._images([{"figures": figures}] * 2, {"1/p<12>"}, {"2/p<14>"}, None)
    assert {name: image.shape for name, image in found.items()} == {
        "1/p<12>": (8, 8, 1), "2/p<14>": (8, 8, 1),
    }  # fmt: skip
    same = compare._images([{"figures": {"made_by": [figures]}}], {"1/p<12>"}, set(), {})
    assert list(same) == ["1/p<12>"]
    figures["checkpoint"] = str(tmp_path / "gone/model-3")
    assert compare._images([{"figures": figures}], {"1/p<12>"}, set(), None) == {}


def test_mcnemar_against_the_binomial():
    for won, lost in ((0, 0), (7, 2), (2, 7), (5, 5), (900, 800)):
        n = won + lost
        tail = sum(math.comb(n, i) for i in range(min(won, lost) + 1)) / 2**n
        assert intervals.mcnemar(won, lost) == pytest.approx(min(1, 2 * tail))


def test_what_cannot_be_compared_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no …-eval\.json"):
        paired.load(tmp_path)
    with pytest.raises(ValueError, match="there is no such file or folder"):
        paired.load(tmp_path / "none")
    header = "id,product,relevant,rank,average_precision\n"
    for figures, table, said in (
        ("{", header, r"model-1-eval\.json: cannot be read"),
        ("{}", header, r"model-1-eval\.json: cannot be read: KeyError: 'num_queries'"),
        ('{"num_queries": 1, "recall@k": {}}', "id,rnk\nq,1\n", "KeyError: 'rank'"),
        ('{"num_queries": 1, "recall@k": {"1": 1}}', header + "q,p,1,x,1\n", "ValueError: .*'x'"),
        ('{"num_queries": 2, "recall@k": {"1": 1}}', header + "q,p,1,1,1\n", "holds 1 queries, "),
    ):
        (tmp_path / "model-1-eval.json").write_text(figures)
        (tmp_path / "model-1-queries.csv").write_text(table)
        with pytest.raises(ValueError, match=said):
            paired.load(tmp_path)
