"""The images of a batch: metriclearn's samplers, chosen by `dataset.*` and `model.*`."""

import numpy as np
import tensorflow as tf

from metriclearn import hierarchical_sampler, pair_sampler, pk_sampler
from models.ranker.config import config
from trainer.config import UserError, seed_of


def create(table, of_catalogue):
    """Returns `sample(step) -> int64 [model.batch_size]` rows of a table.

    Args:
      table: the ProductTable of training images.
      of_catalogue: bool [N]: catalogue images.

    Raises:
      UserError: the keys cannot be satisfied with this table.
    """
    share = config["model.random_within_class"]
    if (share or config["dataset.sampler"] == "hierarchical") and (table.categories == "").all():
        raise UserError(
            "model.random_within_class and the hierarchical sampler need categories; the data set "
            f"{config['dataset.name']!r} has none."
        )
    if config["dataset.sampler"] == "hierarchical" and (share or config["dataset.domains"]):
        raise UserError(
            "dataset.sampler=hierarchical cannot be combined with dataset.domains or "
            "model.random_within_class."
        )
    try:
        if share and not config["model.rwc.by_batch"]:
            return _category_by_category(table, of_catalogue, share)
        return _KINDS[config["dataset.sampler"]](table, of_catalogue, share)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"dataset.sampler={config['dataset.sampler']}: {error}.") from None


def _seed():
    return seed_of(config["trainer.random_seed"])


def _products(images_each, have=None):
    """Number of products with a number of images each that fill a batch, of `have` products."""
    batch = config["model.batch_size"]
    if images_each < 1 or batch % images_each:
        raise UserError(f"model.batch_size={batch} is not a multiple of {images_each} images.")
    if have is not None and batch // images_each > have:
        raise UserError(
            f"model.batch_size={batch} needs {batch // images_each} products of {images_each} "
            f"images; {have} can be trained on: lower model.batch_size to {have * images_each}, "
            "or raise dataset.images_per_product."
        )
    return batch // images_each


def _number_of_products(table):
    return len(set(table.products.tolist()))


def _pk(table, of_catalogue, share):
    """Products with K images each; with domains, a fixed number of each kind."""
    images = config["dataset.images_per_product"]
    count = _products(images)
    if count > (have := _number_of_products(table)):  # a small shop: more images per product
        batch = config["model.batch_size"]
        count = max(n for n in range(1, have + 1) if batch % n == 0)
        images = batch // count
    options = {"products": count, "seed": _seed(), "single_category": share}
    categories = _categories_of_products(table)
    if not config["dataset.domains"]:
        return pk_sampler(table.labels, images=images, categories=categories, **options)
    shown = config["dataset.catalogue_images_per_product"]
    if not 0 < shown < images:
        raise UserError(
            f"dataset.catalogue_images_per_product={shown} must leave room for queries among "
            f"dataset.images_per_product={images}."
        )
    # Both samplers draw the same products: a sampler's choice depends only on the number of
    # products, their categories and the seed, which are the same.
    sides = []
    for kind, count in ((~of_catalogue, images - shown), (of_catalogue, shown)):
        rows = np.flatnonzero(kind)
        sample = pk_sampler(
            table.labels[rows], images=count, categories=categories[rows], **options
        )
        sides.append((rows, sample, count))

    def sample(step):
        parts = [tf.reshape(tf.gather(rows, of(step)), [-1, n]) for rows, of, n in sides]
        return tf.reshape(tf.concat(parts, 1), [-1])

    sample.steps_per_epoch = max(of.steps_per_epoch for _, of, _ in sides)
    return sample


def _pairs(table, of_catalogue, share):
    """A query and a positive per product: queries first, as `mine_given_positive` expects."""
    across = config["dataset.domains"] and not config["dataset.intradomain_pairs"]
    kinds = np.where(of_catalogue, "catalogue", "query") if across else np.full(len(table), "any")
    return pair_sampler(
        table.labels,
        kinds,
        pairs=_products(2, _number_of_products(table)),
        query="query" if across else "any",
        positive="catalogue" if across else "any",
        seed=_seed(),
        categories=_categories_of_products(table),
        single_category=share,
    )


def _hierarchical(table, of_catalogue, share):
    """Categories, products per category, images per product."""
    groups, images = config["dataset.categories_per_batch"], config["dataset.images_per_product"]
    return hierarchical_sampler(
        table.labels,
        table.categories,
        categories_per_batch=groups,
        products=_products(groups * images),
        images=images,
        seed=_seed(),
    )


_KINDS = {"pk": _pk, "pairs": _pairs, "hierarchical": _hierarchical}


def _categories_of_products(table):
    """[N] the category of each row's product: that of its first image."""
    first = np.unique(table.labels, return_index=True)[1]
    return table.categories[first][table.labels]


def _category_by_category(table, of_catalogue, share):
    """Passes over one category's products, mixed with passes over all, in a fixed order per turn.

    A turn has one pass over each category that fills a batch, and as many passes over all products
    as needed for the fraction `share` of single-category passes.
    """
    make = _KINDS[config["dataset.sampler"]]
    categories = _categories_of_products(table)
    least = _products(
        2 if config["dataset.sampler"] == "pairs" else config["dataset.images_per_product"]
    )
    streams, passes = [], []
    for name in np.unique(categories):
        rows = np.flatnonzero(categories == name)
        if len(np.unique(table.labels[rows])) >= least:
            streams.append((rows, make(table.select(rows), of_catalogue[rows], 0.0)))
            passes.append(1)
    if not streams:
        raise UserError(
            f"model.random_within_class: no category has the {least} products of a batch."
        )
    if share < 1:
        streams.append((np.arange(len(table)), make(table, of_catalogue, 0.0)))
        passes.append(max(1, round(len(passes) * (1 - share) / share)))
    lengths = [sample.steps_per_epoch for _, sample in streams]
    order = np.random.default_rng(_seed()).permutation(np.repeat(np.arange(len(streams)), passes))
    stream_of = np.repeat(order, np.array(lengths)[order])
    per_turn = np.bincount(stream_of)
    place = np.empty(len(stream_of), np.int64)
    for stream in range(len(streams)):
        place[stream_of == stream] = np.arange(per_turn[stream])

    def sample(step):
        turn, at = step // len(stream_of), step % len(stream_of)
        stream = tf.gather(stream_of, at)
        local = turn * tf.gather(per_turn, stream) + tf.gather(place, at)
        branches = [lambda r=rows, s=of: tf.gather(r, s(local)) for rows, of in streams]
        return tf.switch_case(tf.cast(stream, tf.int32), branches)

    sample.steps_per_epoch = len(stream_of)
    return sample
