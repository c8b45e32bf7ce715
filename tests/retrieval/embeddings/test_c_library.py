"""TensorFlow's C library against its Python package."""

import concurrent.futures

import numpy as np
import pytest
import tensorflow as tf

from retrieval.embeddings import c_library
from trainer import export

v1 = tf.compat.v1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A SavedModel with a variable, a table and inputs of three types."""
    folder = str(tmp_path_factory.mktemp("graph") / "model")
    with tf.Graph().as_default(), v1.Session() as session:
        numbers = v1.placeholder(tf.float32, [None, 2], "numbers")
        pixels = v1.placeholder(tf.uint8, [None], "pixels")
        text = v1.placeholder(tf.string, [], "text")
        weight = v1.get_variable("w", initializer=[[1.0], [10.0]])
        entries = tf.lookup.KeyValueTensorInitializer(["a"], [7.0])
        table = tf.lookup.StaticHashTable(entries, -1.0)
        tf.identity(tf.matmul(numbers, weight), "product")
        tf.identity(255 - pixels, "negative")
        tf.identity(tf.io.decode_raw(text, tf.uint8), "bytes")
        tf.identity(table.lookup(text), "found")
        tf.identity(tf.shape(pixels, tf.int64), "integers")
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        export.write(session, folder, {"numbers": numbers}, {"out": weight + 0.0}, {})
    return folder


@pytest.mark.parametrize("threads", [1, 300])
def test_threads_are_those_of_a_session(threads):
    expected = v1.ConfigProto(
        intra_op_parallelism_threads=threads,
        inter_op_parallelism_threads=-1 if threads == 1 else threads,  # the caller's
        experimental={
            "disable_thread_spinning": threads == 1,
            "disable_output_partition_graphs": True,
        },
    )
    assert v1.ConfigProto.FromString(c_library._config(threads)) == expected


@pytest.mark.parametrize("threads", [1, 300])
def test_values_come_and_go_unchanged(folder, threads):
    session = c_library.Session(folder, threads)
    product = session.make_callable("product:0", ["numbers:0"])
    given = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    np.testing.assert_array_equal(product(given), [[21], [43], [65]])
    np.testing.assert_array_equal(product(given[:, ::-1]), [[12], [34], [56]])  # not contiguous
    assert product(given[:0]).shape == (0, 1)
    negative = session.make_callable("negative", ["pixels"])(np.arange(4, dtype=np.uint8))
    assert negative.dtype == np.uint8 and negative.tolist() == [255, 254, 253, 252]
    content = bytes(range(256)) * 40
    assert session.make_callable("bytes", ["text"])(content).tobytes() == content
    found = session.make_callable("found", ["text"])
    assert (float(found(b"a")), float(found(b""))) == (7, -1)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for result in pool.map(product, [given] * 20):
            np.testing.assert_array_equal(result, [[21], [43], [65]])
    session.close()
    session.close()


def test_errors_are_tensorflows(folder, tmp_path):
    with pytest.raises(RuntimeError, match="Could not find SavedModel"):
        c_library.Session(str(tmp_path))
    session = c_library.Session(folder)
    with pytest.raises(RuntimeError, match="no operation 'nothing'"):
        session.make_callable("nothing:0", [])
    with pytest.raises(RuntimeError, match="Matrix size-incompatible"):
        session.make_callable("product", ["numbers"])(np.zeros((1, 3), np.float32))
    with pytest.raises(RuntimeError, match="not uint8, int32 or float32"):
        session.make_callable("integers", ["pixels"])(np.zeros(3, np.uint8))
    session.close()


def test_where_there_is_no_library_the_error_says_where_it_was_looked_for(monkeypatch):
    c_library.library.cache_clear()
    monkeypatch.setattr(c_library.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(c_library.Unavailable, match=r"none of libtensorflow_cc\.so\.2"):
        c_library.library()
    monkeypatch.undo()
    monkeypatch.setitem(c_library._FUNCTIONS, "TF_NoSuchFunction", (None, ()))
    with pytest.raises(c_library.Unavailable, match="TF_NoSuchFunction"):
        c_library.library()
