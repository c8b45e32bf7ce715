"""From any of metriclearn's data sets to batches: what is held out, sampled, cropped, disturbed."""

import collections.abc
import dataclasses
import functools
import hashlib
import os

import numpy as np
import tensorflow as tf

from metriclearn import PROXY_LOSSES, augment
from metriclearn.datasets import (
    READERS,
    layout,
    pipeline,
    queries_and_catalogue,
    select_where,
    split_by_product,
)
from models import backbones
from models.backbones import features
from models.ranker import samplers
from models.ranker.config import ALIASES, config
from trainer.config import UserError, seed_of

AUGMENTATIONS = {
    "blur": augment.random_blur(),
    "colour": augment.random_colour(),
    "erasing": augment.random_erasing(),
    "flip": augment.random_flip,
    "noise": augment.random_noise(),
}
# Readers whose images can lie elsewhere than their lists.
LISTED = ("cars196", "cub200", "deepfashion_c2s", "grocery", "in_shop", "sop")


class Lazy(collections.abc.Mapping):
    """Datasets by name, each made when it is asked for.

    The features that a head trains on take minutes to compute, and an evaluation needs none.
    """

    def __init__(self, makers):
        self.makers = makers

    def __getitem__(self, name):
        return self.makers[name]()

    def __iter__(self):
        return iter(self.makers)

    def __len__(self):
        return len(self.makers)


def datasets(start_step=0):
    """Returns the datasets by name; training batches are a pure function of (seed, step)."""
    train, validation = training_tables()
    makers = {"trn": lambda: _train_batches(train, start_step)}
    if validation:
        makers["vld"] = lambda: _validation_batches(*validation)
    table = _where(_table(), "dataset.test_where")
    if (table.splits == "test").any():
        queries, catalogue = queries_and_catalogue(table, split="test")
        most = config["evaluation.precision@k.max_examples"]
        if 0 < most < len(queries):
            some = np.random.default_rng(0).permutation(len(queries))[:most]
            queries = queries.select(np.sort(some))
        makers["retrieval_query"] = lambda: _every(queries)
        makers["retrieval_index"] = lambda: _every(catalogue)
    return Lazy(makers)


# ---------------------------------------------------------------------------- tables


def training_tables():
    """What is trained on, and what is held out of it.

    Returns:
      (the ProductTable of training images; None, or the one to validate on and, bool [N], which
      of its images are the catalogue: where none is, each is searched among the others).
    """
    table = _where(_table(), "dataset.train_where")
    shop, pool = table.splits == "catalogue", np.isin(table.splits, ("train", "val"))
    held = _held_out(table, pool)
    train = pool & ~held
    if config["dataset.domains"]:
        train |= shop & np.isin(table.labels, table.labels[train])
    shown = _of_catalogue(table)
    asked = held & ~shown
    shown &= np.isin(table.labels, table.labels[asked])
    if config["dataset.validation.holdout"] not in ("photos", "both"):
        shown &= held | shop  # of other products than those trained on
    if config["dataset.validation"] and not asked.any():
        raise UserError(
            "dataset.validation: no image is held out; raise dataset.validation.share, or give "
            "--nodataset.validation."
        )
    rows = np.flatnonzero(asked | (shown & (pool | shop)))
    validation = (table.select(rows), shown[rows]) if asked.any() else None
    if validation and not _answerable(*validation):
        raise UserError(
            "dataset.validation: no product that is held out has an image to find (two images or, "
            "where there is a catalogue, one in it); choose another dataset.validation.holdout, or "
            "give --nodataset.validation."
        )
    return _with_positives(table.select(train)), validation


def _answerable(table, shown):
    """Whether any query, an image that is not shown, has an image of its product to find."""
    answers = np.bincount(table.labels, shown) if shown.any() else np.bincount(table.labels) - 1
    return bool((answers[table.labels[~shown]] > 0).any())


def _with_positives(train):
    """The rows of products that make a pair: of one image there is none.

    With `dataset.domains` a product needs images of both kinds, unless its pairs may be of one. A
    loss against proxies needs no pair.
    """
    counts = np.bincount(train.labels)
    kept = counts >= (1 if config["model.loss"] in PROXY_LOSSES else 2)
    paired = config["dataset.sampler"] == "pairs" and config["dataset.intradomain_pairs"]
    if config["dataset.domains"] and not paired:
        of_catalogue = np.bincount(train.labels, _of_catalogue(train))
        kept = (of_catalogue > 0) & (of_catalogue < counts)
        if not kept.any():
            raise UserError(
                f"dataset.domains: no product of {config['dataset.name']} has images of both "
                "kinds to train on (catalogue images have the role catalogue or the domain shop)."
            )
    if not kept.any():
        raise UserError(
            f"{config['dataset.name']}: no training product has two images, and one makes no pair."
        )
    return train.select(kept[train.labels])


def _of_catalogue(table):
    """bool [N]: the images that a query is looked up in."""
    found = (table.roles == "catalogue") | (table.splits == "catalogue")
    return found | (table.domains == "shop") if config["dataset.domains"] else found


def _held_out(table, pool):
    """bool [N]: the rows of the pool, training and validation splits, that are not trained on."""
    how, share = config["dataset.validation.holdout"], config["dataset.validation.share"]
    if not config["dataset.validation"]:
        return np.zeros(len(table), bool)
    own = table.splits == "val"
    if not how and own.any():
        return own
    if not 0 < share < 1:
        raise UserError(f"dataset.validation.share={share} must be between 0 and 1.")
    held = np.zeros(len(table), bool)
    rows = np.flatnonzero(pool)
    if how in ("", "products", "both"):
        parts = split_by_product(table.products[rows], (1 - share, share, 0))
        held[rows] = parts == "val"
    if how in ("photos", "both"):
        rows = np.flatnonzero(pool & ~held & ~_of_catalogue(table))
        held[rows] = _share_of_each(table.products[rows], table.ids[rows], share)
    return held


def _share_of_each(products, ids, share):
    """bool [N]: a share of each product's images, those whose ids' hashes come first."""
    keys = np.array([hashlib.sha256(name.encode()).hexdigest() for name in ids.tolist()])
    codes = np.unique(products, return_inverse=True)[1]
    order, counts = np.lexsort((keys, codes)), np.bincount(codes)
    place = np.empty(len(ids), np.int64)
    place[order] = np.arange(len(ids)) - (np.cumsum(counts) - counts)[codes[order]]
    return place < np.rint(share * counts)[codes]


def _where(table, key):
    """The rows that meet the conditions of a key."""
    try:
        return select_where(table, config[key])
    except ValueError as error:
        raise UserError(f"{key}={config[key]}: {error}.") from None


def _table():
    keys = ("name", "base_path", "image_path", "columns", "on_bad_image", "max_pixels")
    return _load(*(config[f"dataset.{key}"] for key in keys))


@functools.lru_cache(maxsize=1)
def _load(name, base, images, columns, on_bad_image, max_pixels):
    name = ALIASES.get(name, name)
    base, images = os.path.expanduser(base), os.path.expanduser(images)
    if not base and name != "glyphs":
        raise UserError(f"dataset.base_path is empty: give the folder of the data set {name!r}.")
    options = {}
    if columns and name != "manifest":
        raise UserError(f"dataset.columns: the data set {name!r} has its own columns.")
    if name == "manifest":
        options = {"root": images or None, "columns": columns}
        base = os.path.join(base, "manifest.csv") if os.path.isdir(base) else base
    elif images and name not in LISTED:
        raise UserError(f"dataset.image_path: the data set {name!r} has no other place of images.")
    elif images:
        options = {"check_files": False}
    table = READERS[name](*([] if name == "glyphs" else [base]), **options)
    if images and name in LISTED:
        paths = [os.path.join(images, *path.split("/")) for path in table.ids.tolist()]
        layout.check_files(paths, f"dataset.image_path={images}")
        table = dataclasses.replace(table, paths=paths)
    if table.images is not None and table.images.shape[-1] == 1:
        table = dataclasses.replace(table, images=np.repeat(table.images, 3, axis=-1))
    return pipeline.usable_images(table, on_bad_image, max_pixels)


# ---------------------------------------------------------------------------- batches


def image_options(table):
    """How a table's images are read when nothing about them is random."""
    height, width, channels = image_dimensions()
    boxes = config["dataset.bounding_boxes"] and table.boxes is not None
    crop = augment.box_window() if boxes else None
    options = {"image_size": (height, width), "channels": channels, "crop": crop}
    return options | {"max_pixels": config["dataset.max_pixels"]}


def image_dimensions():
    """(height, width, channels) of the model's images."""
    dimensions = config["model.default_image_dimensions"]
    if len(dimensions) != 3 or min(dimensions[:2]) < 1 or dimensions[2] != 3:
        raise UserError(
            f"model.default_image_dimensions={dimensions}: give height, width and 3 channels "
            "(gray images are made RGB)."
        )
    return tuple(dimensions)


def load_backbone(address):
    """`models.backbones.load` as the configuration has it, once."""
    keys = "hub_input_range", "pooling", "lora_rank"
    return _loaded(address, *(config[f"model.{key}"] for key in keys))


@functools.lru_cache(maxsize=1)  # weights are checked when they are loaded
def _loaded(address, input_range, pooling, lora_rank):
    try:
        return backbones.load(
            address, input_range=input_range, pooling=pooling, lora_rank=lora_rank
        )
    except ValueError as error:
        raise UserError(f"model.hub_address: {error}") from None


def _every(table):
    batch = config["model.batch_size"]
    return pipeline.eval_batches(table, batch_size=batch, **image_options(table))


def _train_batches(table, start_step):
    options = {"start_step": start_step, "seed": seed_of(config["trainer.random_seed"])}
    sample = samplers.create(table, _of_catalogue(table))
    if config["model.cached_features"]:
        return features.train_batches(_cached(table), sample, **options)
    crop, augmentation = _augmentation(table)
    budget = config["dataset.cache_mb"] << 20
    return pipeline.train_batches(
        table,
        sample,
        augment=augmentation,
        cache=pipeline.DecodedCache(budget) if budget else None,
        **(image_options(table) | {"crop": crop}),
        **options,
    )


def _augmentation(table):
    """(crop, augment) of training images, as `pipeline.train_batches` takes them."""
    names, crop = config["dataset.augment"], image_options(table)["crop"]
    unknown = [name for name in names if name not in ("crop", *AUGMENTATIONS)]
    if unknown:
        known = ", ".join(("crop", *sorted(AUGMENTATIONS)))
        raise UserError(f"dataset.augment: there is no {unknown[0]!r}; choose of {known}.")
    if "crop" in names:
        smallest = config["dataset.augment.smallest_crop"]
        if not 0 < smallest <= 1:
            raise UserError(f"dataset.augment.smallest_crop={smallest} must be above 0, at most 1.")
        crop = augment.window_near_box() if crop else augment.random_window(smallest)
    changes = [AUGMENTATIONS[name] for name in names if name != "crop"]
    return crop, augment.compose(*changes) if changes else None


def _cached(table):
    """The backbone's features of a table, out of those of all images that are not tested on.

    So that another choice of what is held out finds them made.
    """
    whole = _table()
    whole = whole.select(whole.splits != "test")
    options, views = image_options(whole), config["dataset.cached_views"]
    height, width = options["image_size"]
    recipe = "boxes" if options["crop"] else ""
    disturbed = {}
    if views > 1:
        crop, augmentation = _augmentation(whole)
        disturbed = {"random_crop": crop, "augment": augmentation}
        recipe += f" {config['dataset.augment']} {config['dataset.augment.smallest_crop']}"
    try:
        found = features.embed(
            load_backbone(config["model.hub_address"]),
            whole,
            image_size=(height, width),
            crop=options["crop"],
            views=views,
            recipe=recipe,
            **disturbed,
        )
    except ValueError as error:
        raise UserError(
            f"model.cached_features with dataset.cached_views={views}: {error}"
        ) from None
    order = np.argsort(whole.ids)
    rows = order[np.searchsorted(whole.ids, table.ids, sorter=order)]
    return dataclasses.replace(found, values=found.values[:, rows], table=table)


def _validation_batches(table, of_catalogue):
    """Batches that also say, in `catalogue`, which images are looked up in."""
    batch_size = config["model.batch_size"]
    shown = tf.data.Dataset.from_tensor_slices(of_catalogue).batch(batch_size)
    if config["model.cached_features"]:
        batches = features.eval_batches(_cached(table), batch_size=batch_size)
    else:
        batches = _every(table)
    return tf.data.Dataset.zip(batches, shown).map(
        lambda batch, shown: {**batch, "catalogue": shown}
    )
