"""Product visual search: a pretrained backbone, a linear head, triplets mined in the batch."""

from models.ranker.config import config
from models.ranker.datasets import datasets, table
from models.ranker.definition import build, loss, metrics

__all__ = ["build", "config", "datasets", "loss", "metrics", "table"]
