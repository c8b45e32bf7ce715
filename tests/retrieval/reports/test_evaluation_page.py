"""The report of an evaluation."""

import csv
import json
import re

import numpy as np

from retrieval.embeddings import store
from retrieval.evaluation.figures import evaluate
from retrieval.reports import outputs


def test_a_report_of_distances_shows_them_positive(circle, stored, tmp_path):
    queries, catalogue = circle
    result = evaluate(queries, catalogue, similarity="euclidean")
    outputs.write_stored(str(tmp_path / "e"), stored(result), queries, catalogue)
    written = (tmp_path / "e-report.html").read_text()
    assert "the distance from the query; smaller is nearer" in written and "✗ 0." in written
    assert "✗ -" not in written and "✓ -" not in written


def test_one_query_of_one_product(circle, stored, tmp_path):
    """The smallest evaluation there is has a report, too."""
    queries, catalogue = circle
    queries = store.Embedded(*(getattr(queries, n)[:1] for n in ("embeddings", "ids", "products")),
                             np.array(["k"]))  # fmt: skip
    catalogue = store.Embedded(
        *(getattr(catalogue, n)[:1] for n in ("embeddings", "ids", "products")), np.array(["k"])
    )
    result = evaluate(queries, catalogue)
    outputs.write_stored(str(tmp_path / "e"), stored(result), queries, catalogue)
    written = (tmp_path / "e-report.html").read_text()
    assert "1 catalogue item (1 product)." in written and "nan" not in written


def test_report_holds_everything_and_escapes_it(evaluated_files):
    folder, _, _ = evaluated_files
    page = (folder / "embeddings-report.html").read_text()
    # Nothing of the data becomes markup, nor ends the script that holds it.
    assert "<script>alert" not in page and "\x07" not in page
    assert page.count("<script") == page.count("</script") == 2
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;&amp;&#39;␇é" in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?+(?!data:|#)""", page)
    assert "url(" not in page and "innerHTML" not in page


def test_what_comes_after_the_model_is_in_every_form(evaluated_files):
    folder, _, _ = evaluated_files
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


def test_report_in_a_browser(evaluated_files, looks):
    folder, expected, _ = evaluated_files
    for width, look in looks(folder / "embeddings-report.html").items():
        assert look["wide"] <= int(width), "the page is wider than the screen"
        assert f"{expected['recall@k'][1]:.3f}" in look["text"] and not look["dead"]
        # The parser closes what a stray tag would open: every section is a child of the body.
        assert look["titles"][:4] == ["Summary", "Recall at k", "Similarity", "Categories"]
        assert {"Approximate index", "Confusion", "Worst misses", "Hubs"} <= set(look["titles"])
