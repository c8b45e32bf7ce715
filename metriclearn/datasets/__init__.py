"""Product tables: one reader a data set."""

from metriclearn.datasets.table import ProductTable, queries_and_catalogue, split_by_product

__all__ = ["ProductTable", "queries_and_catalogue", "split_by_product"]
