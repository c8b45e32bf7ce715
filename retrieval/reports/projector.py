"""Embeddings for TensorBoard's projector: vectors, a table of metadata, a sprite of images."""

import math
import os

import numpy as np
from PIL import Image

from retrieval.reports import page
from trainer import files

POINTS = 2000  # at most
NUMBERS = 1_000_000  # maximum over all points: about 10 MB of text
CONFIG = """embeddings {{
  tensor_name: "embeddings"
  tensor_path: "tensors.tsv"
  metadata_path: "metadata.tsv"
{sprite}}}
"""
SPRITE = """  sprite {{
    image_path: "sprite.png"
    single_image_dim: {0}
    single_image_dim: {0}
  }}
"""


def write(folder, queries, catalogue, seed=0):
    """Writes the files that `tensorboard --logdir=FOLDER` shows in its projector.

    Args:
      folder: made if it does not exist.
      queries, catalogue: `Embedded`; their reduced images are used if both have them.
      seed: seed for choosing the points.
    """
    os.makedirs(folder, exist_ok=True)
    random = np.random.default_rng(seed)
    most = max(2, min(POINTS, NUMBERS // queries.embeddings.shape[1]))
    # Half from each side, more from one side if the other has fewer.
    of_queries = min(len(queries), max(most // 2, most - len(catalogue)))
    of_catalogue = min(len(catalogue), most - of_queries)
    sides = [
        (role, items, np.sort(random.permutation(len(items))[:count]))
        for role, items, count in (
            ("query", queries, of_queries),
            ("catalogue", catalogue, of_catalogue),
        )
    ]
    with files.published(os.path.join(folder, "tensors.tsv"), "w") as out:
        for _, items, rows in sides:
            np.savetxt(out, items.embeddings[rows], "%.5g", delimiter="\t")
    with files.published(os.path.join(folder, "metadata.tsv"), "w") as out:
        out.write("id\tproduct\tcategory\trole\n")
        for role, items, rows in sides:
            for row in rows:
                texts = items.ids[row], items.products[row], items.categories[row]
                out.write("\t".join([*map(page.visible, texts), role]) + "\n")
    sprite = ""
    if queries.images is not None and catalogue.images is not None:
        images = [image for _, items, rows in sides for image in items.images[rows]]
        side = min(image.shape[0] for image in images)
        with files.published(os.path.join(folder, "sprite.png")) as out:
            _sprite(images, side).save(out, "PNG")
        sprite = SPRITE.format(side)
    files.write_text(os.path.join(folder, "projector_config.pbtxt"), CONFIG.format(sprite=sprite))


def _sprite(images, side):
    """Square images in rows as TensorBoard expects: as many per row as there are rows."""
    across = math.ceil(math.sqrt(len(images)))
    sprite = Image.new("RGB", (across * side, across * side))
    for n, image in enumerate(images):
        pixels = image[..., 0] if image.shape[-1] == 1 else image[..., :3]
        tile = Image.fromarray(pixels).resize((side, side))
        sprite.paste(tile, (n % across * side, n // across * side))
    return sprite
