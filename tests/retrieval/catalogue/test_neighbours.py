"""Exact neighbors, and the choice, training and tuning of an index."""

import faiss
import numpy as np
import pytest
from stores import items, numbers, write_store

from retrieval import progress
from retrieval.catalogue import index, neighbours

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_training_round_by_round_equals_that_of_faiss(points, similarity, capfd, monkeypatch):
    """Down to the lists; with its progress, and with one warning where the items are few."""
    monkeypatch.setattr(progress, "FIRST", 0)
    monkeypatch.setattr(progress._Lines, "every", 0)
    ours, theirs = (neighbours.make("IVF8,SQ8", points.shape[1], similarity) for _ in range(2))
    points = points[:200]
    neighbours.train(ours, points, "IVF8,SQ8", similarity)
    err = capfd.readouterr()[1]
    assert "training IVF8,SQ8, rounds: 10, " in err and err.count("WARNING") == 1
    theirs.train(neighbours.prepare(points, similarity))
    lists = (faiss.downcast_index(i).quantizer.reconstruct_n(0, 8) for i in (ours, theirs))
    np.testing.assert_array_equal(*lists)


def test_the_choice_follows_size_memory_recall_and_disk():
    gib = 2**30

    def kind(*arguments, **options):
        factory, on_disk, _ = neighbours.choose(*arguments, **options)
        return factory + " on disk" * on_disk

    assert kind(10_000, 128, gib) == "Flat"
    assert kind(1_000_000, 128, 2 * gib) == "HNSW32"
    assert kind(1_000_000, 128, gib / 4) == "IVF4096,SQ8"
    assert kind(10_000_000, 128, gib, recall=0.85) == "IVF16384,RaBitQ4"
    assert kind(10_000_000, 128, 0.7 * gib, recall=0.8) == "IVF16384,PQ64np"
    assert kind(10_000_000, 128, gib / 2, recall=0.4) == "IVF16384,RaBitQ"
    assert kind(10_000_000, 128, gib, disk=9 * gib) == "IVF16384,SQ8 on disk"
    assert kind(1_000_000, 128, gib, recall=1) == "Flat"
    with pytest.raises(ValueError, match=r"at least 12\.7 GiB of memory, or 25\.3 GiB of disk"):
        neighbours.choose(100_000_000, 128, gib, disk=9 * gib)


@pytest.mark.parametrize(
    ("free", "recall", "expected"),
    [
        ("memory", 0.9, "Flat"),
        ("disk", 0.95, "IVF128,SQ8 on disk"),
        ("little memory", 0.87, "IVF128,RaBitQ4"),
    ],
)
def test_auto_builds_what_it_chose(tmp_path, monkeypatch, free, recall, expected):
    monkeypatch.setattr(neighbours, "EXACT_UP_TO", 5000 if free == "memory" else 100)
    random = np.random.default_rng(3)
    centers = random.normal(size=(30, 64))
    points = (centers[random.integers(0, 30, 2000)] + random.normal(size=(2000, 64))).astype("f4")
    source = write_store(tmp_path / "s", [items(points)])
    memory = {"memory": 2**30, "disk": 132_000, "little memory": 121_000}[free]
    manifest = index.build(source, tmp_path / "i", memory=memory, recall=recall)
    assert manifest["factory"] + " on disk" * manifest["on_disk"] == expected
    assert "GiB" in manifest["why"]
    with index.Catalogue.open(tmp_path / "i") as loaded:
        rows = numbers(loaded, loaded.find(points[:100], k=10))
    truth = neighbours.nearest(points[:100], [points], 10)[1]
    found = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(rows, truth, strict=True)])
    assert found > recall - 0.1


def test_an_index_finds_as_much_of_fresh_queries_as_was_asked(tmp_path):
    """Of queries that it was not tuned with, and with copies of items, of which any one will do."""
    random = np.random.default_rng(1)
    centers = random.normal(size=(60, 32))

    def draw(count):
        near = centers[random.integers(0, 60, count)]
        return (near + 0.6 * random.normal(size=(count, 32))).astype("f4")

    points, fresh = draw(6000), draw(1500)
    source = write_store(tmp_path / "s", [items(points)])
    index.build(source, tmp_path / "i", "IVF64,Flat", recall=0.9)
    with index.Catalogue.open(tmp_path / "i") as loaded:
        rows = numbers(loaded, loaded.find(fresh, k=10))
        low = loaded.manifest["tuned"]["interval95"][0]
    truth = neighbours.nearest(fresh, [points], 10)[1]
    found = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(rows, truth, strict=True)])
    assert low >= 0.9 and found >= 0.9
    copies = write_store(tmp_path / "c", [items(np.repeat(points[:300], 20, axis=0))])
    manifest = index.build(copies, tmp_path / "j", "IVF16,Flat", recall=0.9)
    assert manifest["tuned"]["recall"] > 0.9 and manifest["tuned"]["effort"] <= 4
    queries = write_store(tmp_path / "q", [items(fresh[:200])])
    manifest = index.build(source, tmp_path / "k", "IVF64,Flat", queries=queries)
    assert manifest["tuned"]["num_queries"] == 200
    other = write_store(tmp_path / "o", [items(fresh[:9])], weights="w2")
    with pytest.raises(ValueError, match="--queries=.* was embedded with other weights"):
        index.build(source, tmp_path / "k", "Flat", queries=other)


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_nearest_by_blocks(similarity, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", 7)
    random = np.random.default_rng(6)
    points = random.normal(size=(50, 5)).astype(np.float32)
    scores, rows = neighbours.nearest(points[:9], [points[:20], points[20:]], 12, similarity)
    for q in range(9):
        if similarity == "cosine":
            unit = points / np.linalg.norm(points, axis=1, keepdims=True)
            expected = unit @ unit[q]
        else:
            expected = -np.linalg.norm(points - points[q], axis=1)
        order = np.argsort(-expected, kind="stable")[:12]
        assert rows[q].tolist() == order.tolist()
        np.testing.assert_allclose(scores[q], expected[order], atol=1e-3)
