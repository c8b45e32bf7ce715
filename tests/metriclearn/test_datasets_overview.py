"""The table at the start of a run."""

from metriclearn.datasets import ProductTable, overview


def test_the_overview_counts_products_images_and_what_was_excluded():
    table = ProductTable(products=list("aabbbbc"), ids=[str(i) for i in range(7)])
    parts = {"train": (table, 0, 0), "test": (table.select([0, 1]), 2, 1000), "val": (table, 0, 0)}
    parts["val"] = (table.select([]), 0, 0)
    lines = overview.overview(parts, {"too small": 3, "nothing": 0, "more": 1200})
    assert lines == [
        "       products  images  queries  catalogue  images per product",
        "train         3       7                        1 to 4, median 2",
        "test          1       2        2      1,000    2 to 2, median 2",
        "val           0       0",
        "excluded images: 3 too small; 1,200 more",
    ]
