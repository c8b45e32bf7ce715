"""Product visual search: a pretrained backbone, image colors, a linear head."""

from models.ranker.config import config
from models.ranker.datasets import datasets, resizing
from models.ranker.definition import build, frozen_features, loss, metrics, sources, texts
from models.ranker.tables import digest, notes, table

__all__ = [
    "build",
    "config",
    "datasets",
    "digest",
    "frozen_features",
    "loss",
    "metrics",
    "notes",
    "resizing",
    "sources",
    "table",
    "texts",
]
