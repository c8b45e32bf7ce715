"""Names of a Keras model's variables in our graphs, the same in every process."""

import re
from typing import Any


def names(model: Any, variables: list) -> list[str]:
    """Paths of a Keras model's variables as names in a graph.

    Keras numbers layers without a name per process (`dense_7`). Here the numbers start from 0 in
    each model and layer, so that names do not depend on other models in the process.
    """
    automatic = {
        layer.name
        for layer in model._flatten_layers()
        if re.fullmatch(rf"{_snake_case(type(layer).__name__)}(_\d+)?", layer.name)
    }
    paths = [v.path.split("/") for v in variables]
    if all(len(path) > 1 and path[0] == model.name for path in paths):
        paths = [path[1:] for path in paths]
    numbers: dict = {}
    again: dict = {}
    found: dict = {}
    for path in paths:
        parts = []
        for part in path:
            if part in automatic:
                base = re.sub(r"_\d+$", "", part)
                seen = numbers.setdefault((*parts, base), {})
                number = seen.setdefault(part, len(seen))
                part = f"{base}_{number}" if number else base
            parts.append(re.sub(r"[^\w.-]", "_", part, flags=re.ASCII))
        name = "/".join(parts)
        while name in found:
            again[name] = again.get(name, 0) + 1
            name = f"{name}_{again[name]}"
        found[name] = None
    return list(found)


def _snake_case(name):
    """Keras's name for the first layer of a class."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
