"""Stored embeddings: the command line without TensorFlow, the report, bad input."""

import csv
import html
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from retrieval import metrics
from retrieval.embeddings import store
from retrieval.evaluation import baselines, figures, inputs
from retrieval.evaluation.figures import evaluate
from retrieval.reports import evaluation_page

ROOT = pathlib.Path(__file__).parents[2]
NASTY = '<script>alert("x")</script>&\'\x07é'


def run(folder, *arguments, code=None):
    command = (
        [sys.executable, "-m", "retrieval.eval"] if code is None else [sys.executable, "-c", code]
    )
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def write_set(folder, name, points, labels, ids=None):
    np.save(folder / f"{name}.npy", points)
    (folder / f"{name}.txt").write_text("".join(f"{label}\n" for label in labels))
    if ids is not None:
        (folder / f"{name}_ids.txt").write_text("".join(f"{i}\n" for i in ids))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    random = np.random.default_rng(2)
    labels = random.integers(0, 15, 60)
    points = random.normal(size=(15, 8))[labels] + random.normal(size=(60, 8))
    names = [f"{NASTY}{label}" for label in labels]
    write_set(folder, "q", points.astype(np.float32), names, [f"{NASTY}/{n}" for n in range(60)])
    (folder / "categories.txt").write_text("".join(f"<k{n % 2}>\n" for n in labels))
    code = (
        "import sys; from retrieval import eval; eval.run(['eval', *sys.argv[1:]]); "
        "assert 'tensorflow' not in sys.modules"
    )
    done = run(
        folder, "--queries=q.npy", "--query_labels=q.txt", "--query_ids=q_ids.txt",
        "--query_categories=categories.txt", "--index=IVF4,Flat", "--rerank=aqe,dba,k_reciprocal",
        "--output=out", code=code,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = metrics.summarize(metrics.rank_queries(points.astype(np.float32), labels))
    return folder / "out", expected, done


def test_figures_are_those_of_the_library(evaluated):
    folder, expected, done = evaluated
    result = json.loads((folder / "embeddings-eval.json").read_text())
    for k, rate in expected["recall@k"].items():
        assert result["recall@k"][str(k)] == pytest.approx(rate)
        low, high = result["interval95"][f"recall@{k}"]
        assert low <= rate <= high
    assert result["map@r"] == pytest.approx(expected["map@r"])
    assert result["num_self_excluded"] == 60
    assert "certified in float64" in done.stdout


def test_files_beside_the_report(evaluated):
    folder, _, _ = evaluated
    names = {path.name.removeprefix("embeddings-") for path in folder.iterdir()}
    assert names == {
        "eval.json", "top_retrieved.json", "histogram.json", "histogram.png", "recall_at_k.png",
        "queries.csv", "suspected_labels.csv", "report.html", "figures.csv",
    }  # fmt: skip


def test_report_holds_everything_and_escapes_it(evaluated):
    folder, _, _ = evaluated
    page = (folder / "embeddings-report.html").read_text()
    assert "<script" not in page and "\x07" not in page
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;&#x27;␇é" in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?+(?!data:|#)""", page)
    assert "url(" not in page


def test_what_comes_after_the_model_is_in_every_form(evaluated):
    folder, _, _ = evaluated
    figures = json.loads((folder / "embeddings-eval.json").read_text())
    with open(folder / "embeddings-figures.csv", newline="") as text:
        lines = dict(csv.reader(text))
    page = (folder / "embeddings-report.html").read_text()
    found = figures["index"]
    assert float(lines["index.bytes_per_vector"]) == found["bytes_per_vector"]
    assert float(lines["index.lost.1"]) == found["lost"]["1"]
    assert f"<td>{found['bytes_per_vector']:.3g}</td>" in page and "IVF4,Flat" in page
    assert f"finds {100 * found['agreement']:.1f}% of the 10 nearest" in page
    for method in ("aqe", "dba", "k_reciprocal"):
        told = figures["rerank"][method]
        assert float(lines[f"rerank.{method}.recall@k.1"]) == told["recall@k"]["1"]
        assert f"<td>{told['recall@k']['1']:.3f} <small>{told['gain']:+.3f}</small>" in page
        cost = told["seconds_per_point"]
        assert (told["gain"] > 0) == (cost is not None)
        assert cost is None or f"<td>{cost:.3g}</td>" in page
    assert "&lt;k0&gt;" in page and "Confusion of categories" in page


def test_confusion_of_categories_by_hand():
    names = np.array(["1", "2", "3", "4"])
    items = store.Embedded(
        np.array([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 1]]), names, np.array(["p", "q", "q", "p"]),
        np.array(["x", "y", "y", "x"]),
    )  # fmt: skip
    result = evaluate(items)  # each finds its neighbour, of the other category
    assert evaluation_page.category_confusion(items, items, result)[0] == ["x", "y"]
    assert evaluation_page.category_confusion(items, items, result)[1].tolist() == [[0, 2], [2, 0]]
    one = evaluation_page.category_confusion(items, items, result, shown=1)
    assert one[0] == ["x", "…"] and one[1].tolist() == [[0, 2], [2, 0]]


def test_histogram_of_a_collapsed_embedding():
    names = np.array(["1", "2", "3", "4"])
    items = store.Embedded(np.ones((4, 2), np.float32), names, np.array([*"ppqq"]), names)
    found = figures.similarity_histogram(items, items, "cosine")
    edges = found["edges"]
    assert edges[0] < 1 < edges[-1] and edges == sorted(set(edges))


def test_baselines_see_what_they_should():
    random = np.random.default_rng(0)
    a, b = random.integers(0, 120, (2, 6, 6, 3))
    images = np.stack([a, 2 * a + 10, b, np.full_like(a, 255), a[::-1]]).astype(np.uint8)
    names = np.array([*"12345"])
    items = store.Embedded(np.zeros((5, 1), np.float32), names, names, names, images)
    pixels = baselines.raw_pixels(items).embeddings
    assert np.isfinite(pixels).all()
    correlation = np.corrcoef(images.reshape(5, -1)[[0, 1, 2, 4]])
    unit = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
    np.testing.assert_allclose(
        (unit @ unit.T)[[0, 1, 2, 4]][:, [0, 1, 2, 4]], correlation, atol=1e-6
    )
    colours = baselines.color_histogram(items).embeddings
    similarity = colours @ colours.T
    assert similarity[0, 4] == pytest.approx(1) and similarity[0, 3] == 0  # places do not matter


LOOK = """<!doctype html><body><script>
const found = {};
for (const width of [390, 1280]) {
  const frame = document.createElement('iframe');
  frame.width = width; frame.height = 800; frame.src = 'REPORT';
  frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement;
    const right = Math.max(...[...page.querySelectorAll('figure,.card,svg,p,li')].map(
      element => element.getBoundingClientRect().right));
    found[width] = {wide: Math.max(root.scrollWidth, right), text: root.textContent,
      titles: [...page.querySelectorAll('body > section > h2')].map(h => h.textContent),
      dead: [...page.querySelectorAll('nav a')].filter(
        a => !page.getElementById(a.getAttribute('href').slice(1))).length};
    if (Object.keys(found).length == 2) document.body.textContent = JSON.stringify(found);
  };
  document.body.append(frame);
}
</script>"""


def test_report_in_a_browser(evaluated, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine: the report was not looked at in a browser")
    folder, expected, _ = evaluated
    (tmp_path / "look.html").write_text(
        LOOK.replace("REPORT", f"file://{folder}/embeddings-report.html")
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    flags += ["--allow-file-access-from-files", "--virtual-time-budget=20000"]
    page = subprocess.run(
        [browser, *flags, "--dump-dom", f"file://{tmp_path}/look.html"],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    looks = json.loads(html.unescape(re.search(r"<body>(.*)</body>", page, re.DOTALL)[1]))
    for width, look in looks.items():
        assert look["wide"] <= int(width), "the page is wider than the screen"
        assert f"{expected['recall@k'][1]:.3f}" in look["text"] and not look["dead"]
        # The parser closes what a stray tag would open: every section is a child of the body.
        assert look["titles"][:4] == ["Summary", "Recall at k", "Similarity", "Categories"]
        assert {"Approximate index", "Confusion", "Worst misses", "Hubs"} <= set(look["titles"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["a", "b"]}, r"q.txt: 2 lines for 3 embeddings"),
        ({"labels": ["a", "", "b"]}, r"q.txt, line 2: is empty"),
        ({"points": np.array([[1, 0], [np.nan, 1], [1, 1.0]])}, "queries: row 1 is not finite"),
        ({"points": np.array([[1, 0], [0, 0], [1, 1.0]])}, "queries: row 1 is all zeros"),
        ({"points": np.ones((3, 2, 2))}, r"not \[rows, dimensions\]"),
        ({"points": np.ones((3, 0))}, r"must be \[rows, dimensions\], not \[3, 0\]"),
        ({"points": np.ones((3, 2), int)}, "holds int64, not floats"),
        ({"labels": ["a", "b", "c"]}, "no two queries are of one product"),
        ({"ids": ["x", "y", "x"]}, "id 'x' occurs twice"),
        ({"points": np.empty((0, 2)), "labels": [], "ids": []}, "is empty: there is nothing"),
    ],
)
def test_bad_input_is_named(tmp_path, change, message):

    good = {"points": np.eye(3)[:, :2] + 1, "labels": ["a", "a", "b"], "ids": ["1", "2", "3"]}
    given = good | change
    write_set(tmp_path, "q", given["points"], given["labels"], given["ids"])
    with pytest.raises(ValueError, match=message):
        evaluate(inputs.load(tmp_path / "q.npy", tmp_path / "q.txt", tmp_path / "q_ids.txt"))


MISTAKES = [
    (["--query_labels=q.txt", "--index=No"], "--index=No: FAISS cannot make it for 4 dimensions"),
    (["--query_labels=q.txt", "--index=PQ2"], "--index=PQ2: cannot be trained on 4 items"),
    (["--query_labels=q.txt", "--ks="], "--ks=: takes whole numbers from 1 on"),
    (["--query_labels=q.txt", "--model=tiny"], "--model and --queries: give one of them"),
    (["--query_labels=q.txt", "--catalogue_ids=q.txt"], "--catalogue_labels, _ids and _categories"),
    ([], "q.npy: needs --query_labels, a file of one product id per line"),
    (["--query_labels=q.txt", "--catalogue=q.txt"], "q.txt: needs --catalogue_labels"),
    (
        ["--query_labels=q.txt", "--catalogue=q.txt", "--catalogue_labels=q.txt"],
        "q.txt: is not a NumPy array (.npy)",
    ),
    (
        ["--query_labels=q.txt", "--catalogue=no.npy", "--catalogue_labels=q.txt"],
        "no.npy: cannot be read: there is no such file or folder",
    ),
    (["--query_labels=q.txt", "--catalogue=no_store"], "no_store: cannot be read: there is no"),
    (["--query_labels=q.txt", "--output=q.txt"], "--output=q.txt: File exists"),
]
EACH = """
import json, sys
from absl import flags
from retrieval import eval
eval.define_flags()
for arguments in json.loads(sys.argv[1]):
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    try:
        eval.trainer_config.run_without_model(eval.stored, ["eval", *arguments])
    except SystemExit as ended:
        assert ended.code == 1
"""


def test_a_mistake_is_one_line(tmp_path):
    write_set(tmp_path, "q", np.eye(4, dtype=np.float32) + 1, ["a", "a", "b", "b"])
    common = ["--queries=q.npy", "--output=out"]
    done = run(tmp_path, json.dumps([[*common, *given] for given, _ in MISTAKES]), code=EACH)
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert len(said) == len(MISTAKES), done.stderr
    for line, (_, message) in zip(said, MISTAKES, strict=True):
        assert line.startswith(f"error: {message}")


@pytest.mark.parametrize("similarity", ["dot", "euclidean"])
def test_scores_beyond_float32_are_named(similarity):
    names = np.array([*"1234"])
    points = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32) * np.float32(1e25)
    items = store.Embedded(points, names, np.array([*"ppqq"]), names)
    with pytest.raises(ValueError, match=f"{similarity} are beyond float32: divide all embeddings"):
        evaluate(items, similarity=similarity)
    assert np.isfinite(evaluate(items).scores[:, :3]).all()


def test_a_mark_before_the_first_line_is_no_part_of_it(tmp_path):
    write_set(tmp_path, "q", np.eye(4, dtype=np.float32) + 1, ["a", "a", "b", "b"])
    (tmp_path / "q.txt").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "q.txt").read_bytes())
    assert inputs.load(tmp_path / "q.npy", tmp_path / "q.txt").products.tolist() == [*"aabb"]


def test_a_truncated_array_is_named(tmp_path):
    write_set(tmp_path, "q", np.ones((9, 4), np.float32), ["a"] * 9)
    data = (tmp_path / "q.npy").read_bytes()
    (tmp_path / "q.npy").write_bytes(data[:-20])
    done = run(tmp_path, "--queries=q.npy", "--query_labels=q.txt", "--output=out")
    assert done.returncode == 1
    assert re.match(r"error: q\.npy: not a NumPy array that can be read: .*\n$", done.stderr)
