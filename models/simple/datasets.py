"""Where the images come from: typeface glyphs, or the CSV that `dataset.manifest` names."""

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


def datasets(start_step=0):
    """Returns the datasets by name; training batches are a pure function of (seed, step)."""
    table, seed = _table(), seed_of(config["trainer.random_seed"])
    train, validation = table.where(split="train"), table.where(split="val")
    images = config["dataset.images_per_product"]
    sample = pk_sampler(train.labels, products=_products(train, images), images=images, seed=seed)
    options = {"image_size": config["model.image_size"], "channels": channels()}
    options["max_pixels"] = config["dataset.max_pixels"]
    options["crop"] = augment.box_window() if table.boxes is not None else None

    def every(rows):
        return pipeline.eval_batches(rows, batch_size=config["model.batch_size"], **options)

    disturb = augment.compose(augment.random_crop(0.8), augment.random_noise())
    training = {"start_step": start_step, "seed": seed, **options}
    training["augment"] = disturb if config["dataset.augment"] else None
    found = {"trn": pipeline.train_batches(train, sample, **training)}
    if (np.bincount(validation.labels) > 1).any():
        found["vld"] = every(validation)
    else:
        warnings.warn("no product of the split val has two images: no validation", stacklevel=2)
    if (table.splits == "test").any():
        queries, catalogue = queries_and_catalogue(table, split="test")
        found |= {"retrieval_query": every(queries), "retrieval_index": every(catalogue)}
    return found


def notes():
    """Lines for the start of training: what each split holds."""
    table, parts = _table(), {}
    for split in ("train", "val", "test"):
        rows = table.where(split=split)
        asked = len(rows) if split == "val" else 0
        parts[split] = (rows, asked, asked)
    if len(parts["test"][0]):
        queries, catalogue = queries_and_catalogue(table, split="test")
        parts["test"] = (parts["test"][0], len(queries), len(catalogue))
    return overview.overview(parts, {})


def _table():
    path = config["dataset.manifest"]
    return manifest.load(path, columns=config["dataset.columns"]) if path else glyphs.load()


def _products(train, images):
    """How many products fill a batch with so many images each."""
    batch, have = config["model.batch_size"], len(set(train.products.tolist()))
    if not have:
        raise UserError(f"{config['dataset.manifest']}: no row has the split train.")
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
