"""What needs no second worker: how gradients are divided, and what is gathered when."""

import pytest
import tensorflow as tf
import toy_memory

from trainer import collectives, layers, towers
from trainer.config import UserError

v1 = tf.compat.v1


@pytest.mark.parametrize("sizes", [[3], [0, 4], [10, 1, 0, 25, 4], [1] * 9, [40], []])
def test_buckets_hold_every_element_once_and_in_order(sizes):
    found = collectives.buckets(enumerate(sizes), most=10)
    assert all(0 < sum(b - a for _, a, b in bucket) <= 10 for bucket in found if sum(sizes))
    assert all(sum(b - a for _, a, b in bucket) == 10 for bucket in found[:-1])
    parts = [(i, n) for bucket in found for i, a, b in bucket for n in range(a, b)]
    assert parts == [(i, n) for i, size in enumerate(sizes) for n in range(size)]
    assert {i for bucket in found for i, *_ in bucket} == set(range(len(sizes)))


class Doubling:
    """Two workers that have the same rows."""

    def __init__(self):
        self.gathered = []

    def gather(self, tensors):
        self.gathered.append(tensors)
        return [tf.concat([tensor, tensor], 0) for tensor in tensors]


def test_only_what_is_asked_for_is_gathered_and_once():
    with tf.Graph().as_default():
        local = layers.ModelDict(a=tf.zeros([2, 3]), b=tf.zeros([2]), c=tf.zeros([]), d="text")
        exchanges = Doubling()
        outputs = collectives.Joined(local, exchanges)
        assert "b" in outputs and list(outputs) == ["a", "b", "c", "d"]
        assert outputs.c is local.c and outputs.d == "text" and not exchanges.gathered
        assert outputs.a.shape == [4, 3] and outputs["a"] is outputs.get("a")
        assert exchanges.gathered == [[local.a]]
        outputs.e = tf.zeros([7])  # of the loss: it is of all workers already
        assert outputs.e.shape == [7] and outputs.last is outputs.e
        assert dict(outputs)["b"].shape == [4] and len(exchanges.gathered) == 2
        assert outputs.get("f") is None


def test_embeddings_and_labels_take_one_exchange():
    with tf.Graph().as_default():
        local = layers.ModelDict(labels=tf.range(2), x=tf.zeros([2]), embeddings=tf.ones([2, 3]))
        exchanges = Doubling()
        outputs = collectives.Joined(local, exchanges)
        assert outputs.labels.shape == [4] and outputs.embeddings.shape == [4, 3]
        assert exchanges.gathered == [[local.embeddings, local.labels]]


def test_the_scalars_of_a_loss_gather_nothing():
    with tf.Graph().as_default():
        rows = {"x": tf.zeros([4, 4]), "y": tf.ones([4]), "id": tf.fill([4], "1/2")}
        exchanges = Doubling()
        local = toy_memory.build(rows)
        outputs = collectives.Joined(local, exchanges)
        loss, scalars = towers.loss_of(toy_memory, [local], outputs)
        assert scalars == {"scale": local.scale} and loss.shape == []
        assert local.unused.ref() not in {x.ref() for each in exchanges.gathered for x in each}


def test_rows_after_the_averages_and_variables_of_text_are_refused():
    with tf.Graph().as_default():
        exchanges = collectives.Collectives(2, 0, 1.0)
        exchanges.mean([tf.zeros([3])])
        with pytest.raises(ValueError, match="all/rows.*: gather rows before gradients"):
            exchanges.gather([tf.zeros([2], name="all/rows")])
        names = v1.get_variable("names", initializer=tf.constant(["a"]))
        with pytest.raises(UserError, match="variable names holds string"):
            exchanges.broadcast([names])
