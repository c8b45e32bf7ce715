"""Pools the positions of a network's output to one vector per image."""

import tensorflow as tf

v1 = tf.compat.v1

METHODS = ("auto", "class_token", "mean", "gem", "concat", "attention")


def pool(x, method="auto", *, prefix=0, class_token=False):
    """Pools a network's output over positions.

    Args:
      x: [B, F], which is returned unchanged; a map [B, h, w, F]; or tokens [B, N, F].
      method: one of `METHODS`. auto: the class token if there is one, otherwise the mean. gem:
        generalized mean (Radenovic et al. 2019, arXiv 1711.02512) with a trained exponent,
        initially 3. concat: class token and mean. attention: a mean weighted by the softmax of x q
        / sqrt(F); the trained q starts at 0, which gives the mean.
      prefix: number of tokens before those of patches: class token and registers.
      class_token: whether the first token is a class token.

    Returns:
      float32 [B, F], or [B, 2 F] for concat.

    Raises:
      ValueError: the output has no such tokens, or no positions at all.
    """
    x = tf.cast(x, tf.float32)
    if x.shape.rank == 2:
        if method != "auto":
            raise ValueError(f"model.pooling={method}: the network already pools; give auto")
        return x
    if x.shape.rank == 4:
        x = tf.reshape(x, [tf.shape(x)[0], -1, x.shape[-1]])
    if x.shape.rank != 3:
        raise ValueError(f"its output {x} is not [B, F], [B, h, w, F] or [B, N, F]")
    if method in ("class_token", "concat") and not class_token:
        raise ValueError(f"model.pooling={method}: the network has no class token")
    if method == "class_token" or (method == "auto" and class_token):
        return x[:, 0]
    patches = x[:, prefix:]
    if method == "concat":
        return tf.concat([x[:, 0], tf.reduce_mean(patches, 1)], 1)
    if method == "gem":
        with v1.variable_scope("pooling"):
            exponent = v1.get_variable("exponent", [], initializer=v1.constant_initializer(3.0))
        powers = tf.pow(tf.maximum(patches, 1e-6), exponent)
        return tf.pow(tf.reduce_mean(powers, 1), 1 / exponent)
    if method == "attention":
        width = patches.shape[-1]
        with v1.variable_scope("pooling"):
            query = v1.get_variable("query", [width], initializer=v1.zeros_initializer())
        scores = tf.tensordot(patches, query, 1) / width**0.5
        return tf.einsum("bn,bnf->bf", tf.nn.softmax(scores), patches)
    return tf.reduce_mean(patches, 1)
