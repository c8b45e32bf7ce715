"""The images: glyphs of typefaces, or the CSV `dataset.manifest`."""

import warnings

import numpy as np

from metriclearn import augment
from metriclearn.datasets import glyphs, manifest, overview, pipeline, queries_and_catalogue
from metriclearn.samplers import pk_sampler
from models.simple.config import config
from trainer.config import UserError, seed_of


def channels():
    """Gray glyphs, or color images."""
    return 3 if config["dataset.manifest"] else 1


def table():
    """Returns the ProductTable of all images."""
    path = config["dataset.manifest"]
    return manifest.load(path, columns=config["dataset.columns"]) if path else glyphs.load()


def digest():
    """Returns a digest of the images, which must be the same on all workers."""
    return table().digest()


def datasets(start_step=0, part=(0, 1)):
    """Returns the datasets by name; training batches are a pure function of (seed, step).

    Args:
      start_step: number of batches consumed so far.
      part: (number of this worker, number of workers) that share each training batch.
    """
    seed, rows = seed_of(config["trainer.random_seed"]), table()
    train, validation = rows.where(split="train"), rows.where(split="val")
    images = config["dataset.images_per_product"]
    sample = pk_sampler(train.labels, products=_products(train, images), images=images, seed=seed)
    options = {"image_size": config["model.image_size"], "channels": channels()}
    options["max_pixels"] = config["dataset.max_pixels"]
    options["crop"] = augment.box_window() if rows.boxes is not None else None

    def every(rows):
        return pipeline.eval_batches(rows, batch_size=config["model.batch_size"], **options)

    disturb = augment.compose(augment.random_crop(0.8), augment.random_noise())
    training = {"start_step": start_step, "part": part, "seed": seed, **options}
    training["augment"] = disturb if config["dataset.augment"] else None
    found = {"trn": pipeline.train_batches(train, sample, **training)}
    if (np.bincount(validation.labels) > 1).any():
        found["vld"] = every(validation)
    else:
        warnings.warn("no product of the split val has two images: no validation", stacklevel=2)
    if (rows.splits == "test").any():
        queries, catalogue = queries_and_catalogue(rows, split="test")
        found |= {"retrieval_query": every(queries), "retrieval_index": every(catalogue)}
    return found


def notes():
    """Lines for the start of training: the contents of each split."""
    rows, parts = table(), {}
    for split in ("train", "val", "test"):
        part = rows.where(split=split)
        asked = len(part) if split == "val" else 0
        parts[split] = (part, asked, asked)
    if len(parts["test"][0]):
        queries, catalogue = queries_and_catalogue(rows, split="test")
        parts["test"] = (parts["test"][0], len(queries), len(catalogue))
    return overview.overview(parts, {})


def _products(train, images):
    """Number of products that fill a batch with a number of images each."""
    batch, have = config["model.batch_size"], len(set(train.products.tolist()))
    if not have:
        raise UserError(f"{config['dataset.manifest']}: no row has the split train.")
    if np.bincount(train.labels).max() == 1:
        raise UserError(
            f"{config['dataset.manifest']}: every product of the split train has one image, but "
            "training compares images of the same product: add a second image of each product."
        )
    if images < 1 or batch < images or batch % images:
        raise UserError(
            f"model.batch_size={batch} is not a multiple of dataset.images_per_product={images}."
        )
    if batch // images > have:
        raise UserError(
            f"model.batch_size={batch} needs {batch // images} products of "
            f"dataset.images_per_product={images} images; the split train has {have}: lower "
            f"model.batch_size to {have * images}, or raise dataset.images_per_product."
        )
    return batch // images
