"""Everything that one evaluation computes."""

import dataclasses

import numpy as np
import pytest

from retrieval.evaluation import baselines, figures, suite


def test_the_first_evaluation_reports_everything(clustered):
    items, plain = clustered
    source = figures.Source(checkpoint="c", step=1, model="m")
    results = suite.evaluate(
        items, source=source, title="mine", index="Flat", reranking=["dba"], with_baselines=True
    )
    assert list(results) == ["mine", "raw pixels", "color histogram"]
    found = results["mine"].figures
    assert found.source == source and found.recall == plain.figures.recall
    assert found.index.factory == "Flat" and list(found.rerank) == ["dba"]
    assert found.raw_pixels == results["raw pixels"].figures
    pixels = figures.evaluate(baselines.raw_pixels(items)).figures
    assert found.raw_pixels == pixels and pixels.recall != plain.figures.recall
    assert found.frozen_backbone is None  # this model offers none
    best = max(results["raw pixels"], results["color histogram"], key=lambda r: r.figures.recall[1])
    assert found.verdict.baseline_rate == pytest.approx(best.figures.recall[1])
    assert found.verdict.rate == pytest.approx(plain.figures.recall[1])
    assert found.verdict.outcome == "better" and not found.verdict.warning
    written = found.to_json()
    assert next(iter(written)) == "verdict" and figures.Figures.from_json(written) == found


def test_a_frozen_backbone_is_a_baseline_with_and_without_color(clustered):
    items, plain = clustered
    items = dataclasses.replace(items, features=items.embeddings)
    results = suite.evaluate(items, title="mine", with_baselines=True)
    assert list(results)[3:] == ["frozen backbone", "frozen backbone with color"]
    found = results["mine"].figures
    assert found.frozen_backbone.recall == plain.figures.recall
    both = found.frozen_backbone.recall[1], found.frozen_backbone_color.recall[1]
    assert found.verdict.baseline_rate == pytest.approx(max(both))
    assert f"({found.verdict.baseline}): " in found.verdict.sentence


def test_baselines_are_compared_by_cosine(clustered):
    items, _ = clustered
    results = suite.evaluate(items, items, with_baselines=True, similarity="euclidean", ks=(1, 3))
    similarities = [each.figures.similarity for each in results.values()]
    assert similarities == ["euclidean", "cosine", "cosine"]
    assert all(set(each.figures.recall) == {1, 3} for each in results.values())


def test_files_are_named(clustered):
    items, plain = clustered
    found = suite.evaluate_files(items, None, ("q.npy", None)).figures
    assert found.source == figures.Files(queries="q.npy", catalogue=None, made_by=[])
    assert found.verdict.outcome == "no baseline" and found.rejection
    bare = dataclasses.replace(found, source=None, verdict=None, rejection=None)
    assert bare == plain.figures


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reranking": ["aqe", "no"]}, "--rerank=no: takes any of aqe, dba, k_reciprocal"),
        ({"reranking": ["aqe"], "similarity": "dot"}, "--rerank works with --similarity=cosine"),
        ({"index": "No"}, "--factory=No: FAISS cannot make it"),
    ],
)
def test_options_that_do_not_suit_are_named(clustered, options, message):
    with pytest.raises(ValueError, match=message):
        suite.evaluate(clustered[0], **options)


def test_threads_are_limited(clustered):
    import faiss

    before = faiss.omp_get_max_threads()
    try:
        result = suite.evaluate(clustered[0], threads=1)["embeddings"]
        assert faiss.omp_get_max_threads() == 1
        np.testing.assert_array_equal(result.rows, clustered[1].rows)
    finally:
        faiss.omp_set_num_threads(before)
