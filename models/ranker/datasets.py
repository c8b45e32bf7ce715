"""From any data set of metriclearn to batches: held-out images, sampling, crops, augmentation."""

import collections.abc
import dataclasses
import functools

import numpy as np
import tensorflow as tf

from metriclearn import augment
from metriclearn.datasets import pipeline
from models import backbones
from models.backbones import features
from models.ranker import head, samplers, tables
from models.ranker.config import config
from models.ranker.tables import of_catalogue, test_tables, training_tables
from trainer.config import UserError, seed_of

USUAL_SIZE = (224, 224)  # image size for a backbone whose files give none

AUGMENTATIONS = {
    "blur": augment.random_blur(),
    "colour": augment.random_colour(),
    "erasing": augment.random_erasing(),
    "flip": augment.random_flip,
    "noise": augment.random_noise(),
}


class Lazy(collections.abc.Mapping):
    """Datasets by name, each made on demand.

    Computing the features for the head takes minutes, and the search for near duplicates reads all
    images; an evaluation needs neither.
    """

    def __init__(self, makers):
        self.makers = makers

    def __getitem__(self, name):
        return self.makers[name]()

    def __contains__(self, name):
        return name in self.makers  # without making the dataset

    def __iter__(self):
        return iter(self.makers)

    def __len__(self):
        return len(self.makers)


def datasets(start_step=0, part=(0, 1)):
    """Returns the datasets by name; training batches are a pure function of (seed, step).

    Args:
      start_step: number of batches consumed so far.
      part: (number of this worker, number of workers) that share each training batch.
    """
    makers = {"trn": lambda: _train_batches(training_tables()[0], start_step, part)}
    if config["dataset.validation"]:
        makers["vld"] = lambda: _validation_batches(*training_tables()[1])
    if test := test_tables():
        makers["retrieval_query"] = lambda: _test_batches(test[0])
        makers["retrieval_index"] = lambda: _test_batches(test[1])
    return Lazy(makers)


# ---------------------------------------------------------------------------- batches


def image_options(table):
    """Options for reading images without randomness."""
    height, width, channels = image_dimensions()
    how = resizing()
    crop = augment.box_window() if _boxes(table) else how.window
    options = {"image_size": (height, width), "channels": channels, "crop": crop}
    return options | {"max_pixels": config["dataset.max_pixels"], "method": how.method}


def _boxes(table):
    return config["dataset.bounding_boxes"] and table.boxes is not None


def resizing():
    """How images are resized: the backbone's `augment.Resizing`."""
    return load_backbone(config["model.hub_address"]).resizing


def image_dimensions():
    """(height, width, channels) of the model's images."""
    dimensions = config["model.default_image_dimensions"]
    if list(dimensions[:2]) == [0, 0]:
        backbone = load_backbone(config["model.hub_address"])
        known = backbone.image_size if backbone.resizing.window else None
        dimensions = [*(known or USUAL_SIZE), *dimensions[2:]]
    if len(dimensions) != 3 or min(dimensions[:2]) < 1 or dimensions[2] != 3:
        raise UserError(
            f"model.default_image_dimensions={dimensions}: give height, width and 3 channels "
            "(gray images are converted to RGB)."
        )
    return tuple(dimensions)


def load_backbone(address):
    """The configured backbone, loaded once."""
    options = {key: config[f"model.{key}"] for key in ("pooling", "lora_rank", "drop_path")}
    return _loaded(address, input_range=config["model.hub_input_range"], **options)


@functools.lru_cache(maxsize=1)  # weights are checked when they are loaded
def _loaded(address, **options):
    try:
        return backbones.load(address, **options)
    except ValueError as error:
        raise UserError(f"model.hub_address: {error}") from None


def _every(table):
    batch = config["model.batch_size"]
    return pipeline.eval_batches(table, batch_size=batch, **image_options(table))


def _test_batches(table):
    """Images and, if the backbone is unchanged, their features.

    The features are kept, so that the evaluation of another head does not run the backbone again.
    """
    # Weights loaded into a run may be those of another backbone.
    if not trains_head_alone() or config["model.weights_load_path"]:
        return _every(table)
    batches = features.eval_batches(features_of(table), batch_size=config["model.batch_size"])
    return tf.data.Dataset.zip(_every(table), batches).map(
        lambda images, found: images | {"features": found["features"]}
    )


def _train_batches(table, start_step, part):
    options = {
        "start_step": start_step,
        "part": part,
        "seed": seed_of(config["trainer.random_seed"]),
    }
    sample = samplers.create(table, of_catalogue(table))
    if trains_head_alone():
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
    """(crop, augment) for training images, arguments of `pipeline.train_batches`."""
    names, crop = config["dataset.augment"], image_options(table)["crop"]
    boxes = _boxes(table)
    unknown = [name for name in names if name not in ("crop", *AUGMENTATIONS)]
    if unknown:
        known = ", ".join(("crop", *sorted(AUGMENTATIONS)))
        raise UserError(f"dataset.augment: there is no {unknown[0]!r}; choose from {known}.")
    if "crop" in names:
        smallest = config["dataset.augment.smallest_crop"]
        crop = augment.window_near_box() if boxes else augment.random_window(smallest)
    changes = [AUGMENTATIONS[name] for name in names if name != "crop"]
    return crop, augment.compose(*changes) if changes else None


def _cached(table):
    """The backbone's features of a table, from those of all images except the test split.

    A run with another held-out set then reuses them.
    """
    whole = tables.not_tested()
    found = features_of(whole, config["dataset.cached_views"])
    order = np.argsort(whole.ids)
    rows = order[np.searchsorted(whole.ids, table.ids, sorter=order)]
    return dataclasses.replace(found, values=found.values[:, rows], table=table)


def features_of(table, views=1):
    """Features and colors of a table, computed or cached: `features.Features`."""
    options = image_options(table)
    height, width = options["image_size"]
    recipe = "boxes" if _boxes(table) else ""
    if options["crop"] and not recipe:
        recipe = str(tuple(resizing()))
    disturbed = {}
    if views > 1:
        crop, augmentation = _augmentation(table)
        disturbed = {"random_crop": crop, "augment": augmentation}
        recipe += f" {config['dataset.augment']} {config['dataset.augment.smallest_crop']}"
    try:
        return features.embed(
            load_backbone(config["model.hub_address"]),
            table,
            image_size=(height, width),
            with_color=color_weight() != 0,
            crop=options["crop"],
            method=options["method"],
            views=views,
            recipe=recipe,
            **disturbed,
        )
    except ValueError as error:
        raise UserError(
            f"model.cached_features with dataset.cached_views={views}: {error}"
        ) from None


def _validation_batches(table, shown):
    """Batches with an entry `catalogue`: which images are catalogue images."""
    batch_size = config["model.batch_size"]
    shown = tf.data.Dataset.from_tensor_slices(shown).batch(batch_size)
    if trains_head_alone():
        batches = features.eval_batches(_cached(table), batch_size=batch_size)
    else:
        batches = _every(table)
    return tf.data.Dataset.zip(batches, shown).map(
        lambda batch, shown: {**batch, "catalogue": shown}
    )


# ---------------------------------------------------------------------------- the head


def trains_head_alone():
    """Whether training uses cached features: `model.cached_features` with pretrained weights."""
    backbone = load_backbone(config["model.hub_address"])
    return config["model.cached_features"] and bool(backbone.fingerprint) and not _without_head()


def _without_head():
    """Whether embeddings are the features alone, which can be compared with texts."""
    texts = load_backbone(config["model.hub_address"]).texts
    return texts is not None and not config["model.reduced_dimension"]


def head_starts_as():
    """'pca' or 'random': `model.head_init` with auto resolved."""
    asked = config["model.head_init"]
    return ("pca" if trains_head_alone() else "random") if asked == "auto" else asked


def color_weight():
    """`model.color`: a weight, 0 for no color, or None for auto."""
    text = config["model.color"]
    if text == "auto":
        return None if head_starts_as() == "pca" else 0.0
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 <= weight < np.inf:
        raise UserError(f"model.color={text}: give auto, 0, or a positive weight.")
    return weight


def start_of_head(size, dimensions):
    """`head.fit` with the cached features of the training and validation images.

    Args:
      size: dimensions of the backbone's features.
      dimensions: dimensions of the embedding.
    """
    train, validation = training_tables()
    tables = [train, validation[0]] if validation else [train]
    return head.fit(
        np.concatenate([_cached(table).values[0] for table in tables]),
        size,
        np.repeat([True, False], [len(train), len(tables[-1]) if validation else 0]),
        np.concatenate([table.products for table in tables]).astype(str),
        np.concatenate([of_catalogue(table) for table in tables]),
        dimensions=dimensions,
        weight=color_weight(),
        seed=seed_of(config["trainer.random_seed"]),
    )
