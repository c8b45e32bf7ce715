"""What workers exchange in a graph, through the collectives of TensorFlow's runtime.

Every worker must run the same exchanges in every step, or the others wait until the timeout. One of
one or two elements hangs when a peer dies, so all are padded. The runtime gathers rows in the order
of the tasks' names as text (0, 1, 10, 2); here they come in the order of the tasks' numbers.
"""

import itertools
from collections.abc import Iterable
from typing import Any

import tensorflow as tf
from tensorflow.python.ops import collective_ops

from trainer import layers
from trainer.config import UserError

v1 = tf.compat.v1

CPU = "/device:CPU:0"
BUCKET = 2 << 20  # elements of an exchange of gradients: 8 MB in float32
LEAST = 64  # elements per worker that every exchange has at least
TEXT = 256  # bytes that a gathered string may have
TOGETHER = ("embeddings", "labels")  # what losses over the whole batch ask for

# The name of a collective among the workers, never used twice in a process.
_keys = itertools.count(1)


class Collectives:
    """The exchanges of one worker in one graph.

    Args:
      count: number of workers.
      task: the number of this one.
      timeout: seconds after which an exchange fails.
      device: where gradients are averaged: a GPU, by NCCL, or the CPU, by a ring.
    """

    def __init__(self, count: int, task: int, timeout: float, device: str = CPU):
        self.count, self.task, self._timeout, self._device = count, task, timeout, device
        self._gathered: list[tf.Tensor] | None = []
        self._last: list[tf.Tensor] = []

    def all_gather(self, row: tf.Tensor) -> tf.Tensor:
        """Joins [1, n] of each worker to [count, n], in the order of their numbers."""
        with v1.device(CPU):
            rows = collective_ops.all_gather_v2(
                row, self.count, 1, next(_keys), communication_hint="ring", timeout=self._timeout
            )
            as_text = sorted(range(self.count), key=str)
            return tf.gather(rows, [as_text.index(task) for task in range(self.count)])

    def sum(self, vectors: list[tf.Tensor], device: str = CPU) -> list[tf.Tensor]:
        """The sums over workers of vectors of one type and known sizes, in one exchange.

        On GPUs, exchanges run in the order in which they were made: NCCL needs one order.
        """
        on_gpu = "GPU" in device
        sizes = [vector.shape.num_elements() for vector in vectors]
        with v1.device(device), tf.control_dependencies(self._last if on_gpu else []):
            total = collective_ops.all_reduce_v2(
                _joined(vectors, LEAST * self.count),
                self.count,
                2 if on_gpu else 1,
                next(_keys),
                communication_hint="nccl" if on_gpu else "ring",
                timeout=self._timeout,
            )
            self._last = [total] if on_gpu else []
            return tf.split(total, [*sizes, LEAST * self.count])[:-1]

    def gather(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Joins the rows of all workers, in the order of the batch, in one exchange.

        Its gradient is that of this worker's rows times `count`: once gradients are averaged over
        workers, a loss over the joined rows counts once, and so does what it reads of variables.

        Args:
          tensors: [b, …] each, of any type, of one shape on all workers; strings of at most TEXT
            bytes, which travel apart.
        """
        if self._gathered is None:
            raise ValueError(f"{tensors[0].name}: gather rows before gradients are averaged")
        if tf.string in [tensor.dtype for tensor in tensors]:
            return [
                self._gather_text(tensor) if tensor.dtype == tf.string else self.gather([tensor])[0]
                for tensor in tensors
            ]

        @tf.custom_gradient
        def joined(*own):
            bits = [tf.reshape(tf.bitcast(tensor, tf.int32), [-1]) for tensor in own]
            row = tf.concat([*bits, tf.zeros([LEAST], tf.int32)], 0)
            sizes = [*map(tf.size, bits), LEAST]
            parts = tf.split(self.all_gather(row[None]), sizes, 1, num=len(sizes))

            def gradient(*upstreams):
                rows = tf.shape(own[0])[0]
                mine = slice(self.task * rows, (self.task + 1) * rows)
                return [None if u is None else u[mine] * self.count for u in upstreams]

            return [self._rows(*each) for each in zip(parts, own, strict=False)], gradient

        every = joined(*(tf.cast(tensor, _wide(tensor.dtype)) for tensor in tensors))
        self._gathered += every
        return [tf.cast(rows, tensor.dtype) for rows, tensor in zip(every, tensors, strict=True)]

    def _rows(self, bits, own):
        """What is like `own`, with the rows of all workers, from its bits, int32 [count, n]."""
        halves = [2] if own.dtype.size == 8 else []
        bits = tf.reshape(bits, tf.concat([[-1], tf.shape(own)[1:], halves], 0))
        every = tf.bitcast(bits, own.dtype)
        every.set_shape([own.shape[0] and own.shape[0] * self.count, *own.shape[1:]])
        return every

    def _gather_text(self, texts):
        """Strings travel as their length and TEXT bytes."""
        size = tf.strings.length(texts)
        message = f"a gathered string has more than {TEXT} bytes"
        with tf.control_dependencies([v1.assert_less_equal(size, TEXT, message=message)]):
            numbers = tf.io.decode_raw(texts, tf.int64, fixed_length=TEXT)
        size, numbers = self.gather([size, numbers])
        codes = tf.bitcast(numbers, tf.uint8)
        letters = tf.gather([bytes([i]) for i in range(256)], tf.cast(codes, tf.int32))
        whole = tf.strings.reduce_join(letters, [-1, -2])
        return tf.strings.substr(whole, tf.zeros_like(size), size)

    def mean(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Averages floating-point tensors of known shapes over workers, the last one first.

        Every exchange of the step precedes each of the results, so that an update that depends on
        one of them is all or nothing.
        """
        gathered, self._gathered = self._gathered, None
        pieces: list[list[tf.Tensor]] = [[] for _ in tensors]
        for kind in (tf.float32, tf.float64):
            with tf.control_dependencies(gathered), v1.device(self._device):
                flat = {
                    i: tf.reshape(tf.cast(tensor, kind), [-1])
                    for i, tensor in enumerate(tensors)
                    if (tensor.dtype == tf.float64) == (kind == tf.float64)
                }
            for bucket in buckets([(i, flat[i].shape.num_elements()) for i in reversed(flat)]):
                parts = self.sum([flat[i][a:b] for i, a, b in bucket], self._device)
                for (i, *_), part in zip(bucket, parts, strict=True):
                    pieces[i].append(part / self.count)
        every = [part for parts in pieces for part in parts]
        with tf.control_dependencies(every), v1.device(self._device):
            return [
                tf.cast(tf.reshape(tf.concat(parts, 0), tensor.shape), tensor.dtype)
                for parts, tensor in zip(pieces, tensors, strict=True)
            ]

    def broadcast(self, variables: Iterable[tf.Variable]) -> list[tf.Operation]:
        """Returns the operations that give all workers the first one's values, bit for bit.

        Raises:
          UserError: a variable holds what cannot be exchanged, such as strings.
        """
        groups: dict[tf.DType, list] = {}
        assigned = []
        for variable in variables:
            kind = variable.dtype.base_dtype
            if not (kind.is_floating or kind.is_integer or kind == tf.bool):
                raise UserError(
                    f"The variable {variable.op.name} holds {kind.name}, which workers cannot "
                    "exchange: train this model in one process."
                )
            # A small type travels in a larger one that holds all its values.
            wide = kind if kind.size >= 4 else tf.float32 if kind.is_floating else tf.int32
            value = tf.cast(variable.read_value(), wide)
            bits = tf.bitcast(value, tf.int64 if wide.size == 8 else tf.int32)
            bits = tf.reshape(tf.zeros_like(bits) if self.task else bits, [-1])
            groups.setdefault(bits.dtype, []).append((variable, wide, bits))
        for members in groups.values():
            for (variable, wide, _), bits in zip(
                members, self.sum([bits for *_, bits in members]), strict=True
            ):
                value = tf.bitcast(tf.reshape(bits, variable.shape), wide)
                assigned.append(variable.assign(tf.cast(value, variable.dtype.base_dtype)).op)
        return assigned


def _joined(tensors, padding):
    """A vector of all elements and some zeros.

    It is joined as bits: mixed precision would join floats in 16 bits.
    """
    kind = tensors[0].dtype
    bits = tf.int64 if kind.size == 8 else tf.int32
    flat = [tf.reshape(tf.bitcast(tensor, bits), [-1]) for tensor in tensors]
    return tf.bitcast(tf.concat([*flat, tf.zeros([padding], bits)], 0), kind)


def _wide(kind):
    """A type of 4 or 8 bytes that holds the values of another."""
    if kind.is_floating:
        return kind if kind.size >= 4 else tf.float32
    return kind if kind in (tf.int32, tf.int64) else tf.int64


class Joined(layers.ModelDict):
    """Outputs of all workers: an entry's rows are gathered when it is asked for.

    TOGETHER are gathered at once, since what an exchange costs hardly depends on its size.

    Args:
      local: the outputs of this worker's towers.
      exchanges: `Collectives`.
    """

    def __init__(self, local: layers.ModelDict, exchanges: Collectives):
        super().__init__(local)
        names = {name for name, v in local.items() if tf.is_tensor(v) and v.shape.rank}
        object.__setattr__(self, "_left", names)
        object.__setattr__(self, "_exchanges", exchanges)

    def __getitem__(self, name):
        if name in self._left:
            names = [one for one in TOGETHER if one in self._left] if name in TOGETHER else [name]
            own = [super(Joined, self).__getitem__(one) for one in names]
            for one, every in zip(names, self._exchanges.gather(own), strict=True):
                self[one] = every
        return super().__getitem__(name)

    def __setitem__(self, name, value):
        self.__dict__.get("_left", set()).discard(name)
        super().__setitem__(name, value)

    def get(self, name, default=None):
        return self[name] if name in self.keys() else default

    def values(self):
        return [self[name] for name in self]

    def items(self):
        return [(name, self[name]) for name in self]


def buckets(sizes: Iterable[tuple[Any, int]], most: int = BUCKET) -> list[list[tuple]]:
    """Divides tensors into exchanges of at most `most` elements, in their order.

    Args:
      sizes: (key, number of elements) of each tensor.
      most: elements per exchange.

    Returns:
      Lists of (key, first element, last element + 1); a large tensor is in several.
    """
    found: list[list[tuple]] = []
    room = 0
    for key, size in sizes:
        for first in [0, *range(room or most, size, most)]:
            if not room:
                found.append([])
                room = most
            last = min(size, first + room)
            found[-1].append((key, first, last))
            room -= last - first
    return found
