"""Low-rank updates (LoRA) of Keras layers, which exports merge into plain kernels."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf


class Update(NamedTuple):
    """A low-rank update of a kernel: `kernel + scale * a @ b`.

    Attributes:
      kernel: a variable of the graph.
      a, b: names of the two variables that are not in the graph.
      scale: factor of their product.
    """

    kernel: tf.Variable
    a: str
    b: str
    scale: float


_merging: list[list[Update]] = []


@contextlib.contextmanager
def merging() -> Iterator[list[Update]]:
    """Within this context models are built without their low-rank updates.

    Yields:
      A list of `Update` that grows as models are built; the caller adds them to the kernels.
    """
    _merging.append([])
    try:
        yield _merging[-1]
    finally:
        _merging.pop()


def merged(layers: list) -> list:
    """The Keras layers to build without their low-rank updates: none, or all that have some."""
    return [x for x in layers if _merging and getattr(x, "lora_enabled", False)]


def note(layers: list, names: dict[int, str], variables: dict[str, Any]) -> None:
    """Adds the updates of `merged` layers to the list that `merging` yielded.

    Args:
      layers: the layers.
      names: {id of a Keras variable: its name}.
      variables: {name: the graph's variable}.
    """
    for layer in layers:
        name = names[id(layer._kernel)]
        kernel = variables[name]
        scope = kernel.op.name.removesuffix(name)
        a, b = (scope + names[id(v)] for v in (layer.lora_kernel_a, layer.lora_kernel_b))
        _merging[-1].append(Update(kernel, a, b, layer.lora_alpha / layer.lora_rank))
