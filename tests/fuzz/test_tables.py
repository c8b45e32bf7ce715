"""Damaged arrays, labels, evaluations and experiments are read right, or refused in one line."""

import io
import json
import pathlib
import sys
import types

import numpy as np
import pytest
import toy

from retrieval.embeddings import store
from retrieval.evaluation import figures, inputs, paired
from retrieval.reports import comparison_page, outputs
from trainer import diff, experiment, meters
from trainer.config import UserError

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from damage import copy, damage_one, example, mutated, numbers, read_or_refused, seeded

ARRAYS = {
    "f4": np.arange(12, dtype="<f4").reshape(4, 3),
    "f2": np.ones((4, 3), np.float16),
    "big": np.arange(12, dtype=">f8").reshape(4, 3),
    "fortran": np.asfortranarray(np.arange(12, dtype="<f4").reshape(4, 3)),
    "objects": np.array([["a", 1], [None, 2.0]], object),
    "records": np.zeros(3, [("a", "<f4"), ("b", "<i8")]),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays(tmp_path, kind):
    data = io.BytesIO()
    np.save(data, ARRAYS[kind], allow_pickle=True)
    path = tmp_path / "a.npy"
    for number in numbers(1.5):
        with example(f"array {kind}", number):
            path.write_bytes(mutated(data.getvalue(), seeded(kind, number)))
            found = read_or_refused(lambda: store.load_array(path), path)
            if found is not None:
                assert found.dtype.kind == "f" and found.dtype.isnative
                known = np.load(path, allow_pickle=False)
                np.testing.assert_array_equal(found, known)


LINES = {
    "plain": b"shoe\nhat\nshoe\n\xc3\xa9 b\n",
    "windows": b"\xef\xbb\xbfshoe\r\nhat\r\nshoe\r\nbag\r\n",
    "csv": b"a,1\n\"b\",2\n'c',3\nd;4\n",
    "odd": "\u2028a\x0bb\n\x85\n\u00a0\nx\n".encode(),
}


@pytest.mark.parametrize("kind", LINES)
def test_labels(tmp_path, kind):
    path = tmp_path / "labels.txt"
    for number in numbers(2):
        with example(f"labels {kind}", number):
            data = mutated(LINES[kind], seeded(kind, number))
            path.write_bytes(data)
            found = read_or_refused(lambda: inputs.lines(path, 4), path)
            if found is not None:
                known = data.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").split(b"\n")
                assert [v.encode() for v in found.tolist()] == [
                    v.removesuffix(b"\r") for v in known
                ]


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    """Two evaluations of the same queries, `a` and `b`."""
    folder = tmp_path_factory.mktemp("evaluations")
    random = np.random.default_rng(0)
    names = np.array([f"q{n}" for n in range(12)])
    labels = np.array([f"p{n % 4}" for n in range(12)])
    for name in "ab":
        points = random.normal(size=(12, 4)).astype(np.float32)
        items = store.Embedded(points, names, labels, labels)
        result = figures.evaluate(items)
        prefix = folder / name / "embeddings"
        prefix.parent.mkdir()
        outputs.write_queries(f"{prefix}-queries.csv", items, items, result)
        lists = outputs.top_retrieved(items, items, result.scores, result.rows)
        outputs.write_json_list(f"{prefix}-top_retrieved.json", lists)
        outputs.write_figures(prefix, result.figures.to_json())
    return folder


def compared(folder, written=None):
    """What two evaluations say, as JSON; `written` gets the page."""
    a, b = (paired.load(folder / name) for name in "ab")
    result = paired.compare(a, b, replicates=20)
    if written:
        comparison_page.write(written, a, b, result, with_images=False)
    else:
        paired.lists_of(a, set(a.queries)), paired.lists_of(b, set(b.queries))
    return json.loads(json.dumps(result.to_json()).replace(str(folder), ""))


def test_evaluations(evaluations, tmp_path):
    known = compared(evaluations)
    for number in numbers(0.5):
        with example("evaluation", number):
            folder = copy(evaluations, tmp_path / "e")
            damage_one(folder, seeded("evaluation", number))
            assert read_or_refused(lambda f=folder: compared(f), folder) in (None, known)


def test_evaluations_whose_checksums_agree(evaluations, tmp_path):
    for number in numbers(0.5):
        with example("sealed evaluation", number):
            folder = copy(evaluations, tmp_path / "e")
            damage_one(folder, seeded("sealed evaluation", number))
            for name in "ab":
                path = folder / name / "embeddings-eval.json"
                try:
                    outputs.write_figures(path.parent / "embeddings", json.loads(path.read_bytes()))
                except (OSError, ValueError, TypeError):
                    continue
            read_or_refused(lambda f=folder: compared(f, tmp_path / "page"), tmp_path)


def test_experiments(tmp_path):
    folder = tmp_path / "good"
    folder.mkdir()
    experiment.write_config(folder, toy.config)
    experiment.write_provenance(str(folder), toy, 0, ["/cpu"], "f00d")
    lines = [{"split": "trn", "step": n, "loss": 0.5} for n in range(5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for number in numbers():
        with example("experiment", number):
            damaged = copy(folder, tmp_path / "e")
            damage_one(damaged, seeded("experiment", number))
            model = types.SimpleNamespace(config=toy.config.copy(), __name__="toy")
            try:
                experiment.restore_config(model, (), str(damaged))
                experiment.last_start(damaged)
                diff.compare(str(folder), str(damaged))
            except UserError as error:
                assert len(str(error).splitlines()) == 1
            assert len(meters.read_metrics(damaged)) <= 5
