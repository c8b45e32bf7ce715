"""What a saved model computes once: all that depends on weights alone."""

import numpy as np
import pytest
import tensorflow as tf

from retrieval.embeddings import folding

v1 = tf.compat.v1


def network(image):
    """Kernels with a scale of their own, a loop that reads a weight, and a use of constants."""
    kernel = v1.get_variable("kernel", [4, 6], initializer=v1.glorot_uniform_initializer(1))
    scale = v1.get_variable("scale", [6], initializer=v1.random_uniform_initializer(1, 2, seed=2))
    step = v1.get_variable("step", initializer=0.25).read_value()
    x = tf.matmul(image, kernel * tf.math.rsqrt(scale + tf.constant(1e-3)))
    share = v1.placeholder_with_default(tf.constant(0.5), [], "share")
    loop = v1.while_loop(lambda n, x: n < 3, lambda n, x: (n + 1, x - step * tf.sign(x)), [0, x])
    return tf.add(loop[1] * share, tf.split(scale * 2.0, 2)[1][0], "out")


def graph_of(build):
    session = v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        build(v1.placeholder(tf.float32, [None, 4], "image"))
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
    return session


def run(session, **more):
    feed = {"image:0": np.random.default_rng(0).normal(size=(5, 4)).astype("f")}
    return session.run("out:0", feed | {f"{name}:0": value for name, value in more.items()})


def operations(session):
    return [op.type for op in session.graph.get_operations()]


def test_what_depends_on_weights_alone_is_computed_once():
    with graph_of(network) as session:
        expected = run(session), run(session, share=0.125)
        with folding.folded(session, ["image:0", "out:0"]) as made:
            assert made is not session and "Rsqrt" not in operations(made)
            assert "Rsqrt" in operations(session) and "PlaceholderWithDefault" in operations(made)
            np.testing.assert_array_equal(run(made), expected[0])
            np.testing.assert_array_equal(run(made, share=0.125), expected[1])
            with made.graph.as_default():
                sizes = {tuple(variable.shape) for variable in v1.global_variables()}
            assert (4, 6) in sizes and operations(made).count("VarHandleOp") == len(
                made.graph.get_collection(v1.GraphKeys.GLOBAL_VARIABLES)
            )


def with_table(image):
    entries = tf.lookup.KeyValueTensorInitializer([1], [2.0])
    table = tf.lookup.StaticHashTable(entries, 0.0)
    weight = v1.get_variable("weight", [4, 1], initializer=v1.ones_initializer())
    tf.add(tf.matmul(image, weight * 2.0), table.lookup(tf.constant(1)), "out")


def with_rows(image):
    rows = v1.get_variable("rows", [3, 1], initializer=v1.ones_initializer())
    places = tf.cast(image[:, 0] > 0, tf.int32)
    tf.multiply(tf.gather(rows, places), 2.0, "out")  # reads a part of the variable


def with_function(image):
    weight = v1.get_variable("weight", [4, 1], initializer=v1.ones_initializer())
    loop = v1.while_loop(lambda n, x: n < 3, lambda n, x: (n + 1, x + weight[0]), [0, image])
    tf.identity(loop[1], "out")


def without_weights(image):
    tf.reduce_sum(image, 1, name="out")


@pytest.mark.parametrize("build", [with_table, with_rows, with_function, without_weights])
def test_what_cannot_be_folded_stays_as_it_is(build):
    with graph_of(build) as session, folding.folded(session, ["image:0", "out:0"]) as made:
        assert made is session
        run(made)
