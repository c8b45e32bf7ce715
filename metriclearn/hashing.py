"""SplitMix64 on tensors: random words that are a pure function of integers.

Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators (OOPSLA 2014).
"""

import tensorflow as tf

GAMMA = 0x9E3779B97F4A7C15  # the odd increment between successive states


def mix(words: tf.Tensor) -> tf.Tensor:
    """The output function of SplitMix64, a bijection of uint64 tensors of any shape."""
    words = tf.bitwise.bitwise_xor(words, right_shift(words, 30)) * 0xBF58476D1CE4E5B9
    words = tf.bitwise.bitwise_xor(words, right_shift(words, 27)) * 0x94D049BB133111EB
    return tf.bitwise.bitwise_xor(words, right_shift(words, 31))


def next_word(words: tf.Tensor) -> tf.Tensor:
    """One step of SplitMix64 from each state: uint64 of the shape of `words`."""
    return mix(words + GAMMA)


def word_of(*key: int | tf.Tensor) -> tf.Tensor:
    """Hashes integers and integer tensors, which broadcast, to one uint64 word per element."""
    word = tf.zeros([], tf.uint64)
    for part in key:
        part = tf.cast(part, tf.uint64) if tf.is_tensor(part) else part % 2**64
        word = next_word(word + part)
    return word


def right_shift(words: tf.Tensor, bits: int) -> tf.Tensor:
    """Logical shift of uint64 words."""
    return tf.bitwise.right_shift(words, tf.constant(bits, tf.uint64))
