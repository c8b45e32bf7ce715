"""Prototrain's training framework: graphs, towers, and one readable loop."""

from typing import Any

__all__ = ["Run", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    from trainer import api  # when first used: a program that needs no model starts without it

    return getattr(api, name)
