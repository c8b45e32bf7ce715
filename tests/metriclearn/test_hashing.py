import numpy as np
import tensorflow as tf

from metriclearn import hashing


def test_the_published_sequence():
    """The first outputs of the authors' C code for the seed 1234567."""
    states = (1234567 + np.arange(4, dtype=object) * hashing.GAMMA) % 2**64
    words = hashing.next_word(tf.constant(states.astype(np.uint64)))
    assert words.numpy().tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
    ]


def test_mixing_loses_nothing_and_keys_do_not_collide():
    words = hashing.mix(tf.constant(np.arange(10_000, dtype=np.uint64)))
    assert len(np.unique(words)) == 10_000
    keys = hashing.word_of(tf.range(100)[:, None], tf.range(100), 7)
    assert keys.shape == (100, 100) and len(np.unique(keys)) == 10_000
    assert hashing.word_of(-1) == hashing.word_of(tf.constant(-1)) == hashing.word_of(2**64 - 1)
    assert hashing.word_of(1, 2) != hashing.word_of(2, 1)
