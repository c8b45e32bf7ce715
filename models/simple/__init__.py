"""A small example model: product images to embeddings, trained with a triplet loss."""

from models.simple.config import config
from models.simple.datasets import datasets, digest, notes, table
from models.simple.definition import build, loss, metrics

__all__ = ["build", "config", "datasets", "digest", "loss", "metrics", "notes", "table"]
