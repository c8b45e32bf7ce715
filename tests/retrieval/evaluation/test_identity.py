"""The same image: every kind of set against every other, by a brute-force answer."""

import dataclasses
import hashlib
import itertools
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from retrieval.catalogue import index
from retrieval.embeddings import store
from retrieval.evaluation import figures, identity, inputs, similarity

KINDS = ("folder", "manifest", "npy", "npy without ids", "store", "index")
RELATIONS = ("same files", "same names", "same bytes", "nothing in common")
NAMES = [f"p{product}/{n}.png" for product in range(4) for n in range(3)]


def write_images(folder, names, seed):
    random = np.random.default_rng(seed)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (4, 4, 3)).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """{relation: the catalogue's folder} beside that of the queries, 'queries'."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "queries", NAMES, 0)
    write_images(root / "same names", NAMES, 1)
    write_images(root / "nothing in common", [name.replace("/", "/x") for name in NAMES], 2)
    for name in NAMES:
        copy = root / "same bytes" / name.replace("/", "/copy-of-")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "queries" / name, copy)
    folders = {relation: root / relation for relation in RELATIONS}
    return folders | {"queries": root / "queries", "same files": root / "queries"}


def embedding(path):
    """What a network could make of an image: a function of its bytes."""
    seed = int.from_bytes(hashlib.sha256(path.read_bytes()).digest()[:4], "big")
    product = int(path.parent.name[1:])
    return np.eye(6)[product] + 0.6 * np.random.default_rng(seed).normal(size=6)


@pytest.fixture(scope="module")
def made(images, tmp_path_factory):
    """{(kind, folder): arguments of `inputs.load`}."""
    root, found = tmp_path_factory.mktemp("sets"), {}
    for kind, (name, folder) in itertools.product(KINDS, images.items()):
        files = sorted(folder.rglob("*.png"))
        ids = [path.relative_to(folder).as_posix() for path in files]
        if kind == "manifest":  # other names, in another order, through a link
            link = root / f"link to {name}"
            if not link.exists():
                link.symlink_to(folder)
            files.reverse()
            ids = [f"../link/{path.relative_to(folder).as_posix()}" for path in files]
            files = [link / path.relative_to(folder) for path in files]
        points = np.stack([embedding(path) for path in files]).astype(np.float32)
        products = np.array([path.parent.name for path in files])
        at = root / f"{kind} of {name}"
        if kind.startswith("npy"):
            at.mkdir()
            np.save(at / "points.npy", points)
            (at / "labels.txt").write_text("\n".join(products) + "\n")
            (at / "ids.txt").write_text("\n".join(ids) + "\n")
            arguments = [at / "points.npy", at / "labels.txt"]
            found[kind, name] = arguments + [at / "ids.txt"] * (kind == "npy")
            continue
        paths = np.array([str(path.resolve()) for path in files])
        items = store.Embedded(points, np.array(ids), products, np.full(len(ids), ""))
        if kind != "store":  # that one holds images that are not files
            items = dataclasses.replace(items, paths=paths)
        at.mkdir()
        manifest = store.begin(at, {"checkpoint_sha256": "x", "model": None})
        store.append(at, manifest, items, 1)
        store.finish(at, manifest)
        if kind == "index":
            index.build(at, root / f"{at.name}, built", "Flat", similarity="euclidean")
            at = root / f"{at.name}, built"
        found[kind, name] = [at]
    return found


def with_hashes(items):
    """The same with the hashes of the files, as embedding them fills in."""
    if items.paths is None or not items.paths.any():
        return items
    hashes = [hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest() for path in items.paths]
    return dataclasses.replace(items, hashes=np.array(hashes))


def expected_pairs(kinds, relation, queries, catalogue):
    """Who is whom: {(query row, item row)}, one pair of rows at a time."""
    if relation == "same files" and set(kinds) == {"npy without ids"}:
        return {(q, q) for q in range(len(queries))}
    if relation == "same bytes" and set(kinds) == {"npy without ids"}:
        return {(q, q) for q in range(len(queries))}  # the arrays are equal, too
    # An array without ids takes those of an equal array.
    borrowed = {"npy", "npy without ids"} == set(kinds) and relation in ("same files", "same bytes")
    found = set()
    for q, c in itertools.product(range(len(queries)), range(len(catalogue))):
        files = [
            s.paths[r] if s.paths is not None else "" for s, r in ((queries, q), (catalogue, c))
        ]
        if all(files):
            same = files[0] == files[1]
        elif borrowed:
            same = q == c
        else:
            same = "npy without ids" not in kinds and queries.ids[q] == catalogue.ids[c]
        if same:
            found.add((q, c))
    return found


def brute_ranks(queries, catalogue, excluded):
    ranks = []
    for q in range(len(queries)):
        items = [
            (np.square(queries.embeddings[q].astype(float) - catalogue.embeddings[c]).sum(), c)
            for c in range(len(catalogue))
            if (q, c) not in excluded
        ]
        right = [catalogue.products[c] == queries.products[q] for _, c in sorted(items)]
        ranks.append(right.index(True) + 1)
    return ranks


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("kinds", list(itertools.product(KINDS, KINDS)), ids=" x ".join)
def test_every_kind_against_every_other(made, kinds, relation):
    pair = made[kinds[0], "queries"], made[kinds[1], relation]
    queries, catalogue = inputs.load_pair(*pair)
    own_set = queries is catalogue
    queries, catalogue = with_hashes(queries), with_hashes(catalogue)
    excluded = expected_pairs(kinds, relation, queries, catalogue)
    if own_set:
        catalogue = queries
    same = identity.same_images(queries, catalogue)
    assert set(zip(same.query.tolist(), same.item.tolist(), strict=True)) == excluded
    result = figures.evaluate(queries, None if own_set else catalogue, similarity="euclidean")
    assert result.ranking.first.tolist() == brute_ranks(queries, catalogue, excluded)
    found = result.figures
    assert found.num_self_excluded == len({q for q, _ in excluded})
    assert sum(found.excluded_by.values()) == found.num_self_excluded
    files = not {"npy", "npy without ids", "store"} & set(kinds)
    if not excluded:
        assert same.rule == "nothing in common"
    elif own_set:
        assert found.excluded_by == {"same set": len(queries)}
    else:
        assert found.excluded_by == {"same file" if files else "same id": len(queries)}
    copies = (len(queries) if relation == "same bytes" else 0) if files else None
    assert found.num_byte_equal_copies == copies
    for q, rows in enumerate(result.rows):
        assert not {(q, r) for r in rows.tolist()} & excluded
        assert (rows >= 0).sum() == len(catalogue) - sum(q == each for each, _ in excluded)


def test_all_rows_of_the_querys_own_file_are_excluded():
    """Two crops of one file in the catalogue, one in memory with the query's id, one elsewhere."""
    names = np.array(["a", "b", "c", "d"])
    points = np.array([[1.0, 0], [0.9, 0.1], [0.8, 0.2], [0.5, 0.5]])
    queries = store.Embedded(
        points[:1], names[:1], np.array(["p"]), np.array([""]), paths=np.array(["/x.jpg"])
    )
    catalogue = store.Embedded(
        points, np.array(["x", "y", "a", "z"]), np.full(4, "p"), np.full(4, ""),
        paths=np.array(["/x.jpg", "/x.jpg", "", "/a.jpg"]),
    )  # fmt: skip
    same = identity.same_images(queries, catalogue)
    assert same.item.tolist() == [0, 1, 2] and same.most == 3
    assert same.rule == "same file" and same.excluded_by == {"same file": 1}
    result = figures.evaluate(queries, catalogue, top=4)
    assert result.rows.tolist() == [[3, -1, -1, -1]]
    assert result.ranking.candidates.tolist() == [1]
    assert figures.shelf_ranks(queries, catalogue, "cosine", same).tolist() == [1]
    histogram = similarity.histogram(queries, catalogue, "cosine")
    assert sum(histogram["same_product"]) == 1


def test_equal_bytes_are_counted_once_per_query_and_never_excluded():
    names, hashes = np.array(["a", "b", "c", "d"]), np.array(["1", "1", "1", ""])
    paths = np.array(["/a", "/b", "/c", "/d"])
    items = store.Embedded(np.eye(4), names, names, names, paths=paths, hashes=hashes)
    same = identity.same_images(items, items)
    assert same.excluded_by == {"same set": 4}
    assert same.num_byte_equal_copies == 3
    assert len(same.query) == 4
    assert len(list(identity.sentences(same.excluded_by, same.num_byte_equal_copies))) == 2
    assert not list(identity.sentences({}, None))


def test_among_asks_for_given_queries():
    same = identity.Same(np.array([0, 2]), np.array([1, 0]), 3)
    rows = np.array([[1, 0, -1], [0, 1, 2]])
    assert same.among(rows).tolist() == [[True, False, False], [False] * 3]
    assert same.among(rows, [1, 2]).tolist() == [[False] * 3, [True, False, False]]
    assert same.pairs[0].tolist() == [0, 2]
