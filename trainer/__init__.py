"""Prototrain's training framework: graphs, towers, and one readable loop."""

from typing import Any

__all__ = ["Run", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    from trainer import api  # imported on first use: programs without a model start faster

    return getattr(api, name)
