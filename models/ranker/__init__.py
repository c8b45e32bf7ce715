"""Product visual search: a pretrained backbone, a linear head, triplets mined in the batch."""

from models.ranker.config import config
from models.ranker.datasets import datasets
from models.ranker.definition import build, loss, metrics, sources

__all__ = ["build", "config", "datasets", "loss", "metrics", "sources"]
