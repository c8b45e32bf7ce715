"""Embeddings, a catalogue index of them, and reports about what it finds."""

import importlib
import importlib.util
import os
import sys
from typing import Any

# Imported when first used: FAISS and the reports take a second.
_HOME = {
    "Catalogue": "catalogue.opened",
    "Embedder": "embeddings.embedder",
    "Report": "api",
    "evaluate": "api",
}
__all__ = sorted(_HOME)

if sys.argv[:1] == ["-m"]:
    # `python -m retrieval.…` is starting; it searches the current folder first.
    found = importlib.util.find_spec("trainer")
    ours = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "trainer")
    if found is None or found.origin != os.path.join(ours, "__init__.py"):
        sys.exit(
            f"error: {found and found.origin} hides prototrain's package trainer: rename it, or "
            "run `prototrain` instead of `python -m`"
        )


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'retrieval' has no attribute {name!r}")
    return getattr(importlib.import_module(f"retrieval.{_HOME[name]}"), name)
