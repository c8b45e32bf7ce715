import numpy as np
import pytest
import tensorflow as tf

import metriclearn

pytestmark = pytest.mark.numeric
v1 = tf.compat.v1


def test_the_oldest_make_way_and_nothing_meets_itself():
    memory = metriclearn.cross_batch_memory(5, 1)
    for start in 0, 2, 4, 6:
        batch = np.arange(start, start + 2)
        references = metriclearn.enqueue(memory, batch, batch[:, None].astype(np.float32))
        held = references.labels.numpy()
        np.testing.assert_array_equal(held, references.embeddings[:, 0])
        assert set(held) == set(range(max(0, start - 3), start + 2))
        np.testing.assert_array_equal(held[references.self_index], batch)


def test_first_step_of_a_memory_equals_the_plain_loss():
    labels, x = np.arange(8) % 3, np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    memory = metriclearn.cross_batch_memory(20, 4)
    for loss in metriclearn.triplet_loss, metriclearn.contrastive_loss:
        references = metriclearn.enqueue(memory, labels, x)
        memory.total.assign(0)
        np.testing.assert_allclose(
            loss(labels, x, references=references), loss(labels, x), rtol=1e-6
        )


def test_the_past_is_compared_with_and_gets_no_gradient():
    memory = metriclearn.cross_batch_memory(8, 1, label_dtype=tf.string)
    metriclearn.enqueue(memory, ["a", "b"], [[0.0], [10.0]])
    x = tf.Variable([[1.0], [4.0]])
    step = tf.function(lambda: metriclearn.enqueue(memory, tf.constant(["a", "c"]), x))
    with tf.GradientTape() as tape:
        loss = metriclearn.triplet_loss(
            tf.constant(["a", "c"]), x, margin=5.0, references=step(), reduction="sum"
        )
    # Only 'a' has a positive, the one of the past at 0; its nearest negative is 'c' at 4.
    assert loss == 1 - 3 + 5
    np.testing.assert_array_equal(tape.gradient(loss, x), [[2.0], [0.0]])


def test_towers_share_it_and_a_saver_keeps_it(tmp_path):
    with tf.Graph().as_default():
        with v1.variable_scope("model"):
            memory = metriclearn.cross_batch_memory(4, 2)
        with v1.variable_scope("model", reuse=True):
            assert metriclearn.cross_batch_memory(4, 2).embeddings is memory.embeddings
        assert not v1.trainable_variables()
        references = metriclearn.enqueue(memory, tf.constant([7, 8], tf.int64), tf.ones([2, 2]))
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            session.run(references)
            path = v1.train.Saver().save(session, str(tmp_path / "model"))
        with v1.Session() as session:
            v1.train.Saver().restore(session, path)
            held = session.run(references)
    np.testing.assert_array_equal(held.labels, [7, 8, 7, 8])
    np.testing.assert_array_equal(held.self_index, [2, 3])


def test_a_batch_larger_than_the_memory_is_refused():
    memory = metriclearn.cross_batch_memory(3, 1)
    with pytest.raises(ValueError, match="a batch of 4 does not fit a memory of 3 examples"):
        metriclearn.enqueue(memory, np.arange(4), np.ones((4, 1), np.float32))


@pytest.mark.parametrize("stored", ["uint8", "int32", "int64", "uint64", "string"])
@pytest.mark.parametrize("given", ["uint8", "int32", "int64", "uint64", "string"])
def test_labels_are_kept_exactly_or_refused(given, stored):
    memory = metriclearn.cross_batch_memory(4, 2, label_dtype=stored)
    if given == "string":
        labels = np.array(["a", "b"])
    else:
        labels = np.array([np.iinfo(given).max, np.iinfo(given).min], given)
    holds = given == stored or (
        "string" not in (given, stored) and np.can_cast(np.dtype(given), np.dtype(stored))
    )
    if holds:
        kept = metriclearn.enqueue(memory, labels, np.ones((2, 2), np.float32)).labels
        assert [
            int(v) if given != "string" else v.decode() for v in kept.numpy()
        ] == labels.tolist()
    else:
        with pytest.raises(ValueError, match=f"{given} labels do not fit a memory of {stored}"):
            metriclearn.enqueue(memory, labels, np.ones((2, 2), np.float32))


def test_what_does_not_fit_a_memory_is_named():
    memory = metriclearn.cross_batch_memory(4, 2)
    with pytest.raises(ValueError, match="embeddings of 3 dimensions do not fit a memory of 2"):
        metriclearn.enqueue(memory, [1], np.ones((1, 3), np.float32))
    with pytest.raises(ValueError, match="size=0 and dimension=2 must be at least 1"):
        metriclearn.cross_batch_memory(0, 2)
    with pytest.raises(ValueError, match="label_dtype must be integer or string, got float32"):
        metriclearn.cross_batch_memory(4, 2, label_dtype="float32")
