"""Makes this folder's images and products.csv from the Grocery Store data set.

    git clone https://github.com/marcusklasson/GroceryStoreDataset
    python examples/shop/make.py GroceryStoreDataset

Sixteen products, some of which are easily confused; each has one catalogue image of the shop and
five photos by customers, three to train with and two to search with, spread over the data set's
sequences of near-equal photos. Images are reduced to a shorter side of 144 pixels.
"""

import csv
import pathlib
import sys

import numpy as np
from PIL import Image

from metriclearn import datasets

HERE = pathlib.Path(__file__).parent
PRODUCTS = (
    *("Granny-Smith", "Golden-Delicious", "Royal-Gala", "Lemon", "Lime", "Orange", "Satsumas"),
    *("Red-Bell-Pepper", "Yellow-Bell-Pepper", "Vine-Tomato", "Cucumber", "Zucchini"),
    *("Bravo-Apple-Juice", "Bravo-Orange-Juice", "Oatly-Oat-Milk", "Arla-Standard-Milk"),
)
# By split: how many images of each product, the folder they go to, and their role.
KINDS = {
    "train": (3, "photos", ""),
    "test": (2, "photos", "query"),
    "catalogue": (1, "catalogue", "catalogue"),
}


def main(source):
    """Copies the images of a clone, or of a manifest of it, and writes products.csv."""
    table = datasets.load("manifest" if source.endswith(".csv") else "grocery", source)
    lines = []
    for product in PRODUCTS:
        for split, (count, folder, role) in KINDS.items():
            rows = np.flatnonzero((table.products == product) & (table.splits == split))
            for number, row in enumerate(rows[:: len(rows) // count][:count], 1):
                name = f"{folder}/{product}-{split}-{number}.jpg"
                (HERE / folder).mkdir(exist_ok=True)
                with Image.open(table.paths[row], formats=["JPEG"]) as image:
                    image.thumbnail([144 * max(image.size) // min(image.size)] * 2)
                    image.convert("RGB").save(HERE / name, quality=85)
                lines.append([name, product, table.categories[row], split, role])
    with open(HERE / "products.csv", "w", newline="", encoding="utf-8") as file:
        header = ["path", "label", "category", "split", "role"]
        csv.writer(file, lineterminator="\n").writerows([header, *lines])


if __name__ == "__main__":
    main(sys.argv[1])
