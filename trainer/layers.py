"""Building blocks of a model: an output dictionary and thin layers over variables and tf.nn.

The layers are functions of (tensor, sizes, name). Their variables come from `get_variable`, so
towers share them, and their initial values depend only on the run's seed and their own names.
"""

import collections
import contextlib
import functools
from typing import Any, NamedTuple

import tensorflow as tf

v1 = tf.compat.v1


class ModelDict(collections.OrderedDict):
    """An ordered dictionary with attribute access; `.last` is the entry that was set last."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(f"The model has no output {name!r}; it has {', '.join(self)}.")

    def __setattr__(self, name, value):
        self[name] = value

    def __delattr__(self, name):
        del self[name]

    @property
    def last(self):
        return next(reversed(self.values()))


def conv2d(x, filters, size, name, *, strides=1, padding="SAME", use_bias=True, initializer=None):
    """2-D convolution: [B, H, W, C] -> [B, H', W', filters], kernel [size, size, C, filters]."""
    with v1.variable_scope(name):
        shape = [size, size, int(x.shape[-1]), filters]
        kernel = v1.get_variable("kernel", shape, initializer=initializer)
        x = _convolved(x, tf.convert_to_tensor(kernel), strides, padding)
        return _bias(x, filters) if use_bias else x


def _convolved(x, kernel, strides, padding):
    """tf.nn.conv2d, with the kernel's gradient as a matrix product where that is faster.

    If there are only about as many positions as inputs of a kernel, as in the last stages of a
    ResNet, oneDNN computes that gradient at a third of the speed of a matrix product.
    """

    @tf.custom_gradient
    def convolve(x, kernel):
        def gradient(dy):
            size, steps = int(kernel.shape[0]), [1, strides, strides, 1]
            dx = v1.nn.conv2d_backprop_input(x.shape, kernel, dy, steps, padding)
            patches = _patches(x, size, strides, padding)
            dy = tf.reshape(dy, [-1, int(kernel.shape[-1])])
            return dx, tf.reshape(tf.matmul(patches, dy, transpose_a=True), kernel.shape)

        return tf.nn.conv2d(x, kernel, strides, padding), gradient

    y = tf.nn.conv2d(x, kernel, strides, padding)
    positions, inputs = y.shape[:3].num_elements(), kernel.shape[:3].num_elements()
    few = positions is not None and positions <= inputs
    return convolve(x, kernel) if few and "GPU" not in y.device else y


def _patches(x, size, strides, padding):
    """Inputs of a kernel [size, size, C, …] at each position: [B * H' * W', size * size * C]."""
    inputs = size * size * int(x.shape[-1])
    if strides > 1:  # strided slices are slow
        window, steps = [1, size, size, 1], [1, strides, strides, 1]
        patches = tf.image.extract_patches(x, window, steps, [1, 1, 1, 1], padding)
        return tf.reshape(patches, [-1, inputs])
    if padding == "SAME":
        around = [(size - 1) // 2, size // 2]
        x = tf.pad(x, [[0, 0], around, around, [0, 0]])
    height, width = (int(side) - size + 1 for side in x.shape[1:3])
    parts = [x[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return tf.reshape(tf.concat(parts, -1), [-1, inputs])


def depthwise_conv2d(x, size, name, *, strides=1, padding="SAME", use_bias=True, initializer=None):
    """One filter per channel: [B, H, W, C] -> [B, H', W', C], kernel [size, size, C, 1]."""
    with v1.variable_scope(name):
        channels = int(x.shape[-1])
        kernel = v1.get_variable("kernel", [size, size, channels, 1], initializer=initializer)
        x = tf.nn.depthwise_conv2d(x, kernel, [1, strides, strides, 1], padding)
        return _bias(x, channels) if use_bias else x


def dense(x, units, name, *, use_bias=True, initializer=None):
    """Linear layer: [B, D] -> [B, units], kernel [D, units]."""
    with v1.variable_scope(name):
        kernel = v1.get_variable("kernel", [int(x.shape[-1]), units], initializer=initializer)
        x = tf.matmul(x, kernel)
        return _bias(x, units) if use_bias else x


def _bias(x, channels):
    bias = v1.get_variable("bias", [channels], initializer=v1.zeros_initializer())
    return tf.nn.bias_add(x, bias)


def _scale_and_offset(channels):
    return (
        v1.get_variable("gamma", [channels], initializer=v1.ones_initializer()),
        v1.get_variable("beta", [channels], initializer=v1.zeros_initializer()),
    )


def batch_norm(x, train_phase, name, *, momentum=0.99, epsilon=1e-3):
    """Batch normalization over [B, H, W, C] (Ioffe and Szegedy 2015, arXiv 1502.03167).

    With `train_phase` (a Python bool) a tower normalizes by its slice of the batch and adds the
    updates of the moving averages to UPDATE_OPS, which the trainer runs only for the first tower.
    """
    with v1.variable_scope(name):
        channels = int(x.shape[-1])
        gamma, beta = _scale_and_offset(channels)
        mean = v1.get_variable(
            "moving_mean", [channels], initializer=v1.zeros_initializer(), trainable=False
        )
        variance = v1.get_variable(
            "moving_variance", [channels], initializer=v1.ones_initializer(), trainable=False
        )
        if not (train_phase and not frozen_batch_norm.active):
            return v1.nn.fused_batch_norm(
                x, gamma, beta, mean, variance, epsilon=epsilon, is_training=False
            )[0]
        x, batch_mean, batch_variance = v1.nn.fused_batch_norm(
            x, gamma, beta, epsilon=epsilon, is_training=True
        )
        for average, value in ((mean, batch_mean), (variance, batch_variance)):
            update = v1.assign_sub(average, (1 - momentum) * (average - value))
            v1.add_to_collection(v1.GraphKeys.UPDATE_OPS, update)
        return x


class frozen_batch_norm(contextlib.ContextDecorator):
    """Within this context `batch_norm` uses its moving averages in training too."""

    active = 0

    def __enter__(self):
        frozen_batch_norm.active += 1

    def __exit__(self, *exception):
        frozen_batch_norm.active -= 1


def group_norm(x, groups, name, *, epsilon=1e-5):
    """Group normalization over [B, H, W, C] (Wu and He 2018, arXiv 1803.08494).

    It has no batch statistics, so it does not depend on towers. C must be a multiple of `groups`.
    """
    with v1.variable_scope(name):
        channels = int(x.shape[-1])
        if channels % groups:
            raise ValueError(f"group_norm {name!r}: {channels} channels in {groups} groups.")
        gamma, beta = _scale_and_offset(channels)
        size = [int(x.shape[1]), int(x.shape[2])]
        grouped = tf.reshape(x, [-1, size[0] * size[1], groups, channels // groups])
        mean, variance = tf.nn.moments(grouped, [1, 3], keepdims=True)
        # Folding scale and offset into one multiply-add keeps the [B, H, W, C] traffic low.
        scale = tf.math.rsqrt(variance + epsilon) * tf.reshape(gamma, [groups, channels // groups])
        offset = tf.reshape(beta, [groups, channels // groups]) - mean * scale
        return tf.reshape(grouped * scale + offset, [-1, *size, channels])


def dropout(x, rate, train_phase):
    """Zeroes a fraction `rate` of `x` [B, …] in training and scales the rest by 1 / (1 - rate)."""
    if not train_phase or not rate:
        return x
    keep = random_uniform(x.shape[1:].as_list(), tf.shape(x)[0]) >= rate
    return tf.where(keep, x / (1 - rate), tf.zeros_like(x))


def read_from(checkpoint, name):
    """An initializer that reads a variable's value from a checkpoint when it runs.

    A constant would be part of every copy of the graph.
    """

    def initializer(shape, dtype, partition_info=None):
        with v1.device("/device:CPU:0"):
            value = tf.raw_ops.RestoreV2(
                prefix=checkpoint, tensor_names=[name], shape_and_slices=[""], dtypes=[dtype]
            )[0]
            return tf.ensure_shape(value, shape)

    return initializer


def read_all(checkpoint, dtypes):
    """Initializers {name: …} as of `read_from`, which read all their values by one operation.

    Args:
      checkpoint: prefix of the checkpoint.
      dtypes: {name: dtype}.
    """

    @functools.cache
    def values():
        with v1.device("/device:CPU:0"):
            found = tf.raw_ops.RestoreV2(
                prefix=checkpoint,
                tensor_names=list(dtypes),
                shape_and_slices=[""] * len(dtypes),
                dtypes=list(dtypes.values()),
            )
        return dict(zip(dtypes, found, strict=True))

    def initializer(name, shape, dtype, partition_info=None):
        value = values()[name]
        value.set_shape(shape)
        return value

    return {name: functools.partial(initializer, name) for name in dtypes}


# ------------------------------------------------------- random numbers independent of towers


class Replica(NamedTuple):
    """The tower that is being built, and the keys of its random numbers."""

    seed: int
    step: Any  # int64 scalar tensor
    offset: Any  # int64 scalar tensor: index of its first example in the global batch
    calls: Any  # iterator that counts the random layers


_replicas = []


@contextlib.contextmanager
def replica(seed, step, offset):
    """Makes `random_uniform` draw for the examples `offset`, `offset + 1`, … of `step`."""
    _replicas.append(Replica(seed, step, offset, iter(range(1 << 30))))
    try:
        yield
    finally:
        _replicas.pop()


def current_replica():
    """The `Replica` that is being built, or None."""
    return _replicas[-1] if _replicas else None


def random_uniform(shape, batch):
    """Returns uniform float32 numbers in [0, 1), [batch, *shape], for any split of the batch.

    Example i of the global batch draws from the Philox stream keyed by (seed, call, step), starting
    at counter i * ceil(size / 4), so a tower computes only its own numbers.

    Raises:
      ValueError: no training tower is being built.
    """
    if not _replicas:
        raise ValueError("Random layers work only while the trainer builds a training tower.")
    r = _replicas[-1]
    size = 1
    for n in shape:
        size *= n
    blocks = -(-size // 4)  # one Philox counter yields four 32-bit numbers
    seed = tf.stack([tf.constant(r.seed * 1000003 + next(r.calls), tf.int64), r.step])
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    counter += tf.stack([tf.cast(r.offset * blocks, tf.uint64), tf.zeros([], tf.uint64)])
    drawn = tf.raw_ops.StatelessRandomUniformV2(
        shape=tf.stack([batch, 4 * blocks]), key=key, counter=counter, alg=1
    )
    return tf.reshape(drawn[:, :size], [batch, *shape])
