"""Product visual search: a pretrained backbone, image colors, a linear head."""

from models.ranker.config import config
from models.ranker.datasets import datasets
from models.ranker.definition import build, loss, metrics
from models.ranker.tables import notes

__all__ = ["build", "config", "datasets", "loss", "metrics", "notes"]
