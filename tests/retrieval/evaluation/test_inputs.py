"""Reading embeddings from files: what is read, and damaged files of every kind."""

import os
import pickle
import tracemalloc

import numpy as np
import pytest

from retrieval.catalogue import index
from retrieval.embeddings import store
from retrieval.evaluation import inputs
from retrieval.evaluation.figures import evaluate

LABELS = [*"aabb"]


def write_set(folder, name, points, labels=LABELS, ids=None):
    np.save(folder / f"{name}.npy", points)
    (folder / f"{name}.txt").write_text("".join(f"{label}\n" for label in labels))
    if ids is not None:
        (folder / f"{name}_ids.txt").write_text("".join(f"{i}\n" for i in ids))
    return [folder / f"{name}.npy", folder / f"{name}.txt"]


def write_store(folder, points, names):
    os.makedirs(folder)
    manifest = store.begin(folder, {"checkpoint_sha256": "x", "model": None})
    items = store.Embedded(points, np.array(names), np.array(LABELS), np.full(len(names), ""))
    store.append(folder, manifest, items, 1)
    store.finish(folder, manifest)
    return folder


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f2", ">f8", "fortran"])
def test_every_layout_reads_the_same(tmp_path, kind):
    points = np.arange(12).reshape(4, 3) / 8
    given = np.asfortranarray(points) if kind == "fortran" else points.astype(kind)
    found = inputs.load(*write_set(tmp_path, "q", given))
    np.testing.assert_array_equal(found.embeddings, points)
    assert found.embeddings.dtype.isnative
    assert found.ids.tolist() == [f"queries-{n}" for n in range(4)]


class Payload:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def header(text, version=(1, 0)):
    width = 2 if version == (1, 0) else 4
    return b"\x93NUMPY" + bytes(version) + len(text).to_bytes(width, "little") + text.encode()


def described(shape, kind="<f4", order=False):
    return header(f"{{'descr': {kind!r}, 'fortran_order': {order}, 'shape': {shape}, }}\n")


DAMAGED = {
    "text": (b"0.1 0.2\n", "is not a NumPy array"),
    "nothing": (b"", "is not a NumPy array"),
    "a pickle": (pickle.dumps(Payload()), "is not a NumPy array"),
    "an object": (described((4,), "|O") + pickle.dumps(Payload()), "holds object, not floats"),
    "structured": (described((4, 2), [("x", "<f4")]) + bytes(32), "not floats of 16, 32 or 64"),
    "long doubles": (described((4, 2), "<f16") + bytes(128), "holds float128, not floats"),
    "integers": (described((4, 2), "<i4") + bytes(32), "holds int32, not floats"),
    "a huge shape": (described((2**31, 2**31)), "too few for its shape"),
    "an impossible shape": (described((2**70, 2)), "its shape is"),
    "nothing, but wide": (described((0, 2**70)), "its shape is"),
    "a negative shape": (described((-4, 2)), "its shape is"),
    "no tuple": (described("'ab'"), "cannot be read|can be read"),
    "one axis": (described((4,)) + bytes(16), r"shape \[4\], not \[rows, dimensions\]"),
    "no axis": (described(()) + bytes(4), r"shape \[\], not \[rows, dimensions\]"),
    "version 3": (header("{}", (3, 0)), "version 3.0"),
    "no dictionary": (header("7\n"), "can be read"),
    "deep nesting": (header("(" * 9000 + "\n"), "can be read"),
    "a long header": (header(" " * 60000 + "{}\n"), "can be read"),
    "cut": (described((4, 2)) + bytes(31), "the file was cut off"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_array_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path, labels = write_set(tmp_path, "q", np.ones((4, 2), np.float32))
    content, message = DAMAGED[name]
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as caught:
        inputs.load(path, labels)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "unpickled").exists()


def test_labels_are_counted_before_rows_take_memory(tmp_path):
    """A sparse file of many rows takes no memory per row."""
    path, labels = write_set(tmp_path, "q", np.ones((4, 2), np.float32))
    start = described((2**28, 1))
    with open(path, "wb") as out:
        out.write(start)
        out.truncate(len(start) + 4 * 2**28)
    tracemalloc.start()
    with pytest.raises(ValueError, match="4 lines for 268435456 embeddings"):
        inputs.load(path, labels)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\na\n\xff\nb\n", "cannot be read as text"),
        (b"a\na\nb\0\nb\n", "line 3: holds a NUL character"),
        (b"a\na\n\nb\n", "line 3: is empty"),
        (b"a\na\nb\n", "3 lines for 4 embeddings: one line per row"),
        (b"", "0 lines for 4"),
    ],
)
def test_a_damaged_text_is_named(tmp_path, content, message):
    path, labels = write_set(tmp_path, "q", np.ones((4, 2), np.float32))
    labels.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        inputs.load(path, labels)


def test_pipes_and_devices_are_refused(tmp_path):
    path, labels = write_set(tmp_path, "q", np.ones((4, 2), np.float32))
    os.mkfifo(tmp_path / "pipe")
    for given in ((tmp_path / "pipe", labels), (path, tmp_path / "pipe"), (path, "/dev/zero")):
        with pytest.raises(ValueError, match="is not a file"):
            inputs.load(*given)
    with pytest.raises(ValueError, match="is not a file"):
        inputs.load(path, tmp_path)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        inputs.load(path, tmp_path / "none.txt")


def mutated(data, random):
    """The bytes with a few changed, removed, added or cut off."""
    data = bytearray(data)
    for _ in range(int(random.integers(1, 6))):
        at = int(random.integers(0, max(1, min(len(data), random.choice([130, 10**6])))))
        kind = random.integers(0, 5)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] = int(random.integers(0, 256))
        elif kind == 1:
            data[at:at] = random.bytes(int(random.integers(1, 9)))
        elif kind == 2:
            del data[at : at + int(random.integers(1, 9))]
        elif kind == 3:
            data = data[:at] if random.random() < 0.3 else data
        elif kind == 4:
            digits = [n for n, byte in enumerate(data[:200]) if chr(byte).isdigit()]
            if digits:
                data[int(random.choice(digits))] = int(random.choice(list(b"0123456789-e'(")))
    return bytes(data)


@pytest.mark.parametrize("seed", range(3))
def test_mutated_files_are_read_or_refused(tmp_path, seed):
    """Nothing but ValueError or OSError, one line each, whatever bytes change."""
    random = np.random.default_rng(seed)
    points = random.normal(size=(4, 3)).astype(np.float32)
    array, labels = write_set(tmp_path, "q", points)
    folder = write_store(tmp_path / "store", points, "wxyz")
    index.build(folder, tmp_path / "index", "Flat")
    cases = [(array, (array, labels)), (labels, (array, labels))]
    for at in (folder, tmp_path / "index"):
        files = [path for path in at.rglob("*") if path.is_file() and path.name != "index.faiss"]
        cases += [(path, (at,)) for path in files]
    refused = 0
    for path, arguments in cases:
        good = path.read_bytes()
        for _ in range(120 if path in (array, labels) else 40):
            path.write_bytes(mutated(good, random))
            try:
                inputs.load(*arguments)
            except (ValueError, OSError) as error:
                refused += 1
                assert "\n" not in str(error).strip(), (path, str(error))
        path.write_bytes(good)
        inputs.load(*arguments)
    assert refused > 100


def test_the_same_store_is_one_set_however_it_is_called(tmp_path):
    folder = write_store(tmp_path / "store", np.eye(4, dtype=np.float32), "wxyz")
    (tmp_path / "link").symlink_to(folder)
    queries, catalogue = inputs.load_pair([folder], [tmp_path / "link", None, None, None])
    assert queries is catalogue
    with pytest.raises(ValueError, match="has its own labels"):
        inputs.load_pair([folder], [folder, "labels.txt"])


def test_an_array_without_ids_takes_those_of_its_equal(tmp_path):
    points = np.eye(4, dtype=np.float32)
    a = write_set(tmp_path, "a", points, ids="wxyz")
    b = write_set(tmp_path, "b", points)
    ids = tmp_path / "a_ids.txt"
    queries, catalogue = inputs.load_pair([*a, ids], b)
    assert queries is catalogue and queries.ids.tolist() == [*"wxyz"]
    queries, catalogue = inputs.load_pair(b, [*a, ids])
    assert queries is catalogue and queries.ids.tolist() == [*"wxyz"]
    other = write_set(tmp_path, "c", points, [*"abab"])
    queries, catalogue = inputs.load_pair(other, b)
    assert queries is not catalogue and (queries.ids == catalogue.ids).all()
    unlike = write_set(tmp_path, "d", 2 * points)
    queries, catalogue = inputs.load_pair(unlike, b)
    assert not set(queries.ids.tolist()) & set(catalogue.ids.tolist())
    assert inputs.load_pair(a)[0] is not None


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
        ({"labels": ["a", "b", "c"]}, "no two queries have the same product"),
        ({"ids": ["x", "y", "x"]}, "id 'x' occurs twice"),
        ({"points": np.empty((0, 2)), "labels": [], "ids": []}, "is empty: there is nothing"),
    ],
)
def test_bad_input_is_named(write_set, tmp_path, change, message):
    good = {"points": np.eye(3)[:, :2] + 1, "labels": ["a", "a", "b"], "ids": ["1", "2", "3"]}
    given = good | change
    write_set(tmp_path, "q", given["points"], given["labels"], given["ids"])
    with pytest.raises(ValueError, match=message):
        evaluate(inputs.load(tmp_path / "q.npy", tmp_path / "q.txt", tmp_path / "q_ids.txt"))


def test_a_mark_before_the_first_line_is_no_part_of_it(write_set, tmp_path):
    write_set(tmp_path, "q", np.eye(4, dtype=np.float32) + 1, ["a", "a", "b", "b"])
    (tmp_path / "q.txt").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "q.txt").read_bytes())
    assert inputs.load(tmp_path / "q.npy", tmp_path / "q.txt").products.tolist() == [*"aabb"]
