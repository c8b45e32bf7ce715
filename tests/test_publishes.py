"""Everything that is published in several steps, with a kill between every two of them.

After each, the old or the new is there, whole; after the next run the new one and nothing else. An
index, checkpoints, an export, `--fresh` and provenance.json have such tests of their own.
"""

import dataclasses
import functools
import inspect
import json
import os
import shutil

import crash
import numpy as np
import optuna
import pytest
import toy
from matplotlib.figure import Figure

from metriclearn.datasets import files as dataset_files
from models.backbones import pretrained
from retrieval.embeddings import store
from retrieval.evaluation import figures, paired
from retrieval.reports import comparison_page, outputs, search_page
from trainer import experiment, files, filesets, flight, meters, sweep_report

POINTS = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
NAMES = np.array([f"i{n}" for n in range(12)])
ITEMS = store.Embedded(POINTS, NAMES, np.array([f"p{n % 4}" for n in range(12)]), NAMES)


def contents(folder):
    """{path: bytes} of all files; temporary and unfinished ones excluded."""
    paths = [p for p in folder.rglob("*") if p.is_file()]
    names = {str(p.relative_to(folder)): p.read_bytes() for p in paths}
    return {n: v for n, v in names.items() if not any(x.startswith(".") for x in n.split("/"))}


def everything(folder):
    found = {str(p.relative_to(folder)) for p in folder.rglob("*")}
    return found - {files.MARK, files.LOCK}


@functools.cache
def evaluated(similarity):
    result = figures.evaluate(ITEMS, similarity=similarity)
    source = figures.Files(queries="q", catalogue=None, made_by=[])
    found = dataclasses.replace(result.figures, source=source)
    return dataclasses.replace(result, figures=found)


def evaluation(folder, number, monkeypatch):
    result = evaluated(("cosine", "dot")[number])
    monkeypatch.setattr(  # a page takes long to render
        outputs.evaluation_page, "write", lambda path, **_: files.write_text(path, f"{number}")
    )
    yield
    outputs.write(str(folder / "e"), {"x": result}, ITEMS, ITEMS, lambda which, ids: {}, ())


def comparison(folder, number, monkeypatch):
    pair = []
    for name in ("a", "b"):
        prefix = folder.parent / f"{name}-{number}"
        result = evaluated(("cosine", "dot")[(name == "b") ^ number])
        rows = outputs.top_retrieved(ITEMS, ITEMS, result.scores, result.rows)
        outputs.write_json_list(f"{prefix}-top_retrieved.json", rows)
        outputs.write_queries(f"{prefix}-queries.csv", ITEMS, ITEMS, result)
        outputs.write_figures(prefix, result.figures.to_json())
        pair.append(paired.load(f"{prefix}-eval.json"))
    yield
    comparison_page.write(str(folder), *pair, paired.compare(*pair, 20), with_images=False)


def sweep(folder, number, monkeypatch):
    study = optuna.create_study(direction="minimize")
    study.set_user_attr("spec", {"metric": "loss", "model": "toy", "shared": {}, "space": {}})
    study.add_trial(optuna.create_trial(value=float(number), intermediate_values={1: 2.0}))
    monkeypatch.setattr(sweep_report, "_draw", lambda *_: Figure())  # the panels take long
    yield
    sweep_report.write(study, str(folder), toy.config, study.user_attrs["spec"])


def filled(folder, number):
    """A store of three shards. Its old state is none: a store of something else is refused."""
    if number:

        def rest(done):
            for n in range(done, 3):
                columns = (ITEMS.embeddings, ITEMS.ids, ITEMS.products, ITEMS.categories)
                yield store.Embedded(*(c[n * 4 : n * 4 + 4] for c in columns)), []

        store.fill(folder, {"what": "x"}, rest, shard_rows=4)


def weights(folder, number, monkeypatch):
    def write(name, arrays, folder):
        os.makedirs(os.path.join(folder, "checkpoint"), exist_ok=True)
        for file in ("model-0.data-00000-of-00001", "model-0.index", "checkpoint"):
            files.write_text(os.path.join(folder, "checkpoint", file), f"{number}")

    monkeypatch.setattr(pretrained, "_write", write)
    monkeypatch.setattr(pretrained, "eagerly", lambda function, *rest: function(*rest))
    yield
    pretrained._publish("efficientnet_lite0", {}, str(folder / "w"), "x.pth", f"{number}" * 64)


def configuration(folder, number):
    config = toy.config.copy()
    config["model.num_steps"] = number
    files.claim(folder, "experiment")
    experiment.write_config(folder, config)


def metrics(folder, number):
    line = {"split": "trn", "step": 1, "loss": 0.5}
    if not number:
        return (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    meters.MetricsLog(folder, 0).close()


def record(folder, number):
    flight._write(folder / "step-3.npz", {"step": np.asarray(3)}, {"x": np.asarray(number)})


def found(folder, number):
    item = {"id": "a", "product": "p", "category": "", "path": "", "score": float(number)}
    search_page.write(str(folder / "found.html"), "Found", [("query", "", [item])])


def audit(folder, number):
    dataset_files.write(folder / "audit.html", b"%d" % number)


def read_evaluation(folder):
    loaded = paired.load(folder / "e-eval.json")
    lists = paired.lists_of(loaded, set(NAMES))
    return loaded.figures.similarity, contents(folder), len(lists)


PUBLISHED = {
    "evaluation": (evaluation, read_evaluation),
    "comparison": (comparison, lambda folder: (filesets.settle(folder), contents(folder))),
    "sweep": (sweep, lambda folder: (filesets.settle(folder), contents(folder))),
    "weights": (weights, lambda folder: pretrained._whole(str(folder / "w"))),
    "store": (filled, lambda folder: os.path.isdir(folder) and _rows(folder)),
    "configuration": (configuration, lambda folder: experiment.read_config(folder)),
    "metrics": (metrics, contents),
    "flight record": (record, contents),
    "search page": (found, contents),
    "audit": (audit, contents),
}


def _rows(folder):
    if not os.path.exists(folder / "manifest.json") or not store.is_complete(folder):
        return None
    return store.read(folder).embeddings.tolist()


@pytest.mark.parametrize("what", PUBLISHED)
def test_a_kill_between_any_two_steps_leaves_old_or_new_and_no_litter(tmp_path, monkeypatch, what):
    write, read = PUBLISHED[what]

    def ready(folder, number):
        """The function that publishes, once all that it needs is made."""
        if not inspect.isgeneratorfunction(write):
            return lambda: write(folder, number)
        made = write(folder, number, monkeypatch)
        next(made)
        return lambda: next(made, None)

    folder, runs, states = tmp_path / "f", [], []

    def prepare():
        shutil.copytree(tmp_path / "old", folder)
        runs.append(ready(folder, 1))

    folder.mkdir()
    ready(folder, 0)()
    old = read(folder)
    folder.rename(tmp_path / "old")
    prepare()
    runs[-1]()
    new, names = read(folder), everything(folder)
    assert old != new
    folder.rename(tmp_path / "clean")
    prepare()
    for count in crash.points(lambda: runs[-1](), monkeypatch):
        states.append(read(folder))
        # Converted weights are a cache: what is not whole is converted again by whoever reads it.
        assert states[-1] in (old, new) or (write is weights and states[-1] is None)
        ready(folder, 1)()
        assert read(folder) == new and everything(folder) == names
        folder.rename(tmp_path / str(count))
        prepare()
    assert states[0] == old and states[-1] == new
