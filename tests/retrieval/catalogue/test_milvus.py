"""A catalogue in Milvus answers as any other: by `Catalogue.find`, search, eval and serve."""

import json
import os

import milvus_lite.server_manager  # noqa: F401 (now, not while output is captured)
import numpy as np
import pymilvus  # noqa: F401
import pytest
from stores import NASTY, items, run_program, write_store

from retrieval import eval as evaluator
from retrieval import index as index_program
from retrieval import search
from retrieval.catalogue import index, milvus, milvus_export
from retrieval.catalogue.opened import Catalogue

# Of the optional job: the address of a server, as `tests/milvus_server.py` starts one.
SERVER = os.environ.get("PROTOTRAIN_MILVUS", "")


@pytest.fixture(scope="module", params=["lite", *(["server"] if SERVER else [])])
def place(request, tmp_path_factory):
    """An address of Milvus without a name."""
    if request.param == "server":
        return f"milvus:{SERVER}"
    text = f"milvus:{tmp_path_factory.mktemp('milvus')}/lite"
    request.addfinalizer(lambda: milvus.release(milvus.Address.parse(text)))
    return text


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(0).normal(size=(600, 16)).astype(np.float32)


@pytest.fixture(scope="module", params=["cosine", "dot", "euclidean"])
def pair(request, place, points, tmp_path_factory):
    """The same catalogue in FAISS, exact, and in Milvus."""
    folder = tmp_path_factory.mktemp("pair")
    source = write_store(folder / "s", [items(points)])
    index.build(source, folder / "i", "Flat", similarity=request.param)
    to = f"{place}#{request.param}"
    milvus_export.export(folder / "i", to)
    with Catalogue.open(folder / "i") as exact, Catalogue.open(to) as found:
        yield exact, found, source, to


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"category": "odd"},
        {"by_product": True},
        {"threshold": 0.2},
        {"category": "even", "by_product": True},
    ],
)
def test_it_finds_what_exact_search_finds(pair, points, how):
    """Two items a product, and half of the items a category; a graph may miss one in a hundred."""
    exact, there, *_ = pair
    expected, found = (
        exact.find(points[:60] + 0.1, 7, **how),
        there.find(points[:60] + 0.1, 7, **how),
    )
    hits, wanted = 0, 0
    for a, b in zip(exact.results(expected), there.results(found), strict=True):
        assert [each["rank"] for each in b] == list(range(1, len(b) + 1))
        if "category" in how:
            assert {each["category"] for each in b} <= {how["category"]}
        if "by_product" in how:
            assert len({each["product"] for each in b}) == len(b)
        scores = {each["id"]: each["score"] for each in a}
        hits += len(scores.keys() & {each["id"] for each in b})
        wanted += len(scores)
        for each in b:
            if each["id"] in scores:
                assert each["score"] == pytest.approx(scores[each["id"]], abs=1e-5)
    assert hits >= 0.99 * wanted and found.rows.shape == (60, 7)


def test_items_like_an_item_and_what_is_not_there(pair, points):
    exact, there, *_ = pair
    name = items(points).ids[7]
    a, b = (c.results(c.find_like([name], 5))[0] for c in (exact, there))
    assert [each["id"] for each in a] == [each["id"] for each in b]
    assert name not in {each["id"] for each in b}
    assert there.item(name) == exact.item(name) and there.item("x'\"\\") is None
    assert there.categories() == ["even", "odd"]
    with pytest.raises(ValueError, match=r"of category 'ood'.*odd"):
        there.find(points[:1], category="ood")
    with pytest.raises(ValueError, match="no item of the index has the id"):
        there.find_like([f"nobody{NASTY}"])
    with pytest.raises(ValueError, match=r"queries are \[1, 3\]"):
        there.find(points[:1, :3])
    with pytest.raises(ValueError, match="contains no model"):
        there.embedder()


def test_the_effort_grows_with_the_filter(pair, points, monkeypatch):
    _, there, *_ = pair
    asked = []
    client = there._connection
    real = client.search

    def search_(*arguments, **options):
        asked.append(options["search_params"]["params"]["ef"])
        return real(*arguments, **options)

    monkeypatch.setattr(client, "search", search_)
    there.find(points[:1], 10)
    there.find(points[:1], 10, "odd")
    there.find(points[:1], 20)
    assert asked == [milvus.EF, 2 * milvus.EF, 2 * milvus.EF]


def test_the_programs_search_and_evaluate_it(pair, points, tmp_path, capsys):
    exact, _, source, to = pair
    line = ["search", f"--store={source}", "--k=3"]
    assert run_program(index_program, *line, f"--index={to}") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = exact.results(exact.find(points, 1))
    nearest = [
        each["results"][0]["id"] == a["id"] for each, (a,) in zip(found, expected, strict=True)
    ]
    assert np.mean(nearest) >= 0.99
    name = items(points).ids[3]
    assert run_program(search, f"--item={name}", f"--index={to}", "--k=2") == 0
    assert len(json.loads(capsys.readouterr().out)["results"]) == 2
    similarity = exact.manifest["similarity"]
    line = [f"--queries={source}", f"--index={to}", f"--output={tmp_path}/o"]
    assert run_program(evaluator, *line, f"--similarity={similarity}") == 0
    capsys.readouterr()
    figures = json.loads((tmp_path / "o" / "embeddings-eval.json").read_text())
    loss = figures["index"]
    assert loss["agreement"] >= 0.99 and loss["factory"] == "Milvus of Flat"
    assert (
        run_program(evaluator, *line[:1], f"--catalogue={source}", *line[1:], "--index=milvus:x")
        == 1
    )
    assert "there is no such folder" in capsys.readouterr().err


def test_photos_are_searched_and_served(place, colors, tmp_path, capsys, monkeypatch):
    """With the model of the index that was exported; without it, one line says where it was."""
    from retrieval.serve import metrics, opening, thumbnails

    folder, to = colors.parent / "i", f"{place}#colors"
    milvus_export.export(folder, to)
    photo = str(colors / "red-0.jpg")
    assert run_program(search, photo, f"--index={folder}", "--k=3") == 0
    expected = json.loads(capsys.readouterr().out)
    assert run_program(search, photo, f"--index={to}", "--k=3") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["results"][:2] == expected["results"][:2]  # the third is one of two grays
    assert run_program(search, photo, f"--index={to}@{tmp_path}", "--k=3") == 1
    assert f"{tmp_path}: contains no model" in capsys.readouterr().err
    (shelf,) = opening.shelves(
        [f"shop={to}"], thumbnails.Thumbnails("", 10**6), metrics.Metrics(), threads=1
    )
    served = shelf.current
    name = expected["results"][0]["id"]
    assert served.item(name)["product"] == "red"
    results, facets = served.search(name, 3, facets=True, category="bright")
    assert len(results) == 3 and {f["category"] for f in facets} == {"bright", "neutral"}
    assert not shelf.refresh()
    index.build(_store_of(folder, tmp_path), tmp_path / "again", "Flat")
    milvus_export.export(tmp_path / "again", to)
    assert shelf.refresh() and shelf.current.catalogue.version == 2


def _store_of(folder, tmp_path):
    """A store of the items of an index, of the same weights."""
    from retrieval.embeddings import store
    from retrieval.evaluation import inputs

    manifest = store.begin(
        tmp_path / "s", {"checkpoint_sha256": index.manifest_of(folder)["weights"]}
    )
    store.append(tmp_path / "s", manifest, inputs._of_index(folder), 1)
    store.finish(tmp_path / "s", manifest)
    return tmp_path / "s"
