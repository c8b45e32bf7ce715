"""From any data set of metriclearn to the training, validation and test images."""

import dataclasses
import functools
import hashlib
import os

import numpy as np

from metriclearn import PROXY_LOSSES
from metriclearn.datasets import (
    READERS,
    ProductTable,
    audit,
    layout,
    overview,
    pipeline,
    queries_and_catalogue,
    select_where,
    split_by_product,
)
from models.ranker.config import ALIASES, config
from trainer.config import UserError

# Readers whose images can be in another place than their lists.
LISTED = ("cars196", "cub200", "deepfashion_c2s", "grocery", "in_shop", "sop")
HASHED = 20_000  # maximum images compared for near duplicates


@dataclasses.dataclass(frozen=True)
class Parts:
    """The training images, and the images held out for validation.

    Attributes:
      train: the ProductTable of training images.
      validation: None, or the ProductTable to validate on and, bool [N], its catalogue images. If
        there are none, each image is searched among the others.
      carved: whether the validation products were chosen here, because there is no split.
      repeated: near-duplicate images excluded from validation.
      single: training images that make no pair.
    """

    train: ProductTable
    validation: tuple[ProductTable, np.ndarray] | None
    carved: bool
    repeated: int
    single: int


def training_tables():
    """(`Parts.train`, `Parts.validation`)."""
    found = parts()
    return found.train, found.validation


def parts():
    """Divides the images other than the test split into training and validation: `Parts`."""
    table = _where(_table(), "dataset.train_where")
    shop, pool = table.splits == "catalogue", np.isin(table.splits, ("train", "val"))
    held, shown = _held_out(table, pool), of_catalogue(table)
    repeated = np.zeros(len(table), bool)
    carved = _is_carved(table)
    _check_pairs(table.labels[pool | shop])
    if carved:
        held, repeated = _without_copies(table, pool, held, shown)
    train = pool & ~held
    held &= ~repeated
    if config["dataset.domains"]:
        train |= shop & np.isin(table.labels, table.labels[train])
    asked = held & ~shown
    shown &= np.isin(table.labels, table.labels[asked])
    if config["dataset.validation.holdout"] not in ("photos", "both"):
        shown &= held | shop  # of other products than in training
    if config["dataset.validation"] and not asked.any():
        raise UserError(
            "dataset.validation: no image is held out; raise dataset.validation.share, or give "
            "--nodataset.validation."
        )
    rows = np.flatnonzero(asked | (shown & (pool | shop)))
    validation = (table.select(rows), shown[rows]) if asked.any() else None
    if validation and not _answerable(*validation):
        raise UserError(
            "dataset.validation: no held-out product has an image to find (two images or, "
            "with a catalogue, one catalogue image); choose another dataset.validation.holdout, or "
            "give --nodataset.validation."
        )
    trained = _with_positives(table.select(train))
    single = int(train.sum()) - len(trained)
    return Parts(trained, validation, carved, int(repeated.sum()), single)


def test_tables():
    """The ProductTables (queries, catalogue) of the test split, or None without one."""
    table = _where(_table(), "dataset.test_where")
    if not (table.splits == "test").any():
        return None
    queries, catalogue = queries_and_catalogue(table, split="test")
    most = config["evaluation.precision@k.max_examples"]
    if 0 < most < len(queries):
        some = np.random.default_rng(0).permutation(len(queries))[:most]
        queries = queries.select(np.sort(some))
    return queries, catalogue


def digest():
    """Returns a digest of the images, which must be the same on all workers."""
    return _table().digest()


def table():
    """The whole data set, a ProductTable."""
    return _table()


def not_tested():
    """The ProductTable of all images for training and validation, whatever is held out."""
    table = _where(_table(), "dataset.train_where")
    return table.select(table.splits != "test")


def notes():
    """Lines for the start of training: contents of each split, and what was excluded and why."""
    found, rows = parts(), {}
    rows["train"] = (found.train, 0, 0)
    if found.validation:
        table, shown = found.validation
        asked = int((~shown).sum())
        rows["validation"] = (table, asked, int(shown.sum()) or asked)
    if test := test_tables():
        queries, catalogue = test
        both = np.isin(_table().ids, [*queries.ids, *catalogue.ids])
        rows["test"] = (_table().select(both), len(queries), len(catalogue))
    lines = overview.overview(rows, _excluded(found))
    if found.carved and found.validation:
        count = len(set(found.validation[0].products.tolist()))
        lines.append(
            f"validation: the data have no validation split, so {count} products are held out of "
            "training; near duplicates stay in one split (dataset.validation.share: the number)"
        )
    return lines + _hint_of_domains(found.train)


def _excluded(found):
    """{reason: number of images} for the table at the start."""
    tested = _table().splits == "test"
    chosen = {
        key: np.isin(_table().ids, _where(_table(), f"dataset.{key}").ids)
        for key in ("train_where", "test_where")
    }
    return {
        "unreadable": _read(*_source())[1],
        "excluded by dataset.train_where": int((~tested & ~chosen["train_where"]).sum()),
        "excluded by dataset.test_where": int((tested & ~chosen["test_where"]).sum()),
        "for training, without a pair": found.single,
        "for validation, near duplicates": found.repeated,
    }


def _hint_of_domains(train):
    """A hint if training could also use catalogue images, like the search."""
    if config["dataset.domains"]:
        return []
    shown = _table().products[of_catalogue(_table())]
    count = len(np.intersect1d(shown, train.products))
    if not count:
        return []
    return [
        f"{count} training products have catalogue images: add --dataset.domains to train on both "
        "kinds of image, since the search compares them"
    ]


def _answerable(table, shown):
    """Whether any query (an image not in `shown`) has an image of its product to find."""
    answers = np.bincount(table.labels, shown) if shown.any() else np.bincount(table.labels) - 1
    return bool((answers[table.labels[~shown]] > 0).any())


def _check_pairs(labels):
    """Raises if every product has only one image, before less clear errors."""
    if len(labels) and np.bincount(labels).max() == 1 and config["model.loss"] not in PROXY_LOSSES:
        raise UserError(
            f"{config['dataset.name']}: every product has one image, but training compares images "
            "of the same product: add a second image of each product."
        )


def _with_positives(train):
    """The rows of products with at least one pair.

    With `dataset.domains` a product needs images of both kinds, unless pairs may be of one kind. A
    proxy loss needs no pair.
    """
    counts = np.bincount(train.labels)
    kept = counts >= (1 if config["model.loss"] in PROXY_LOSSES else 2)
    paired = config["dataset.sampler"] == "pairs" and config["dataset.intradomain_pairs"]
    if config["dataset.domains"] and not paired:
        in_catalogue = np.bincount(train.labels, of_catalogue(train))
        kept = (in_catalogue > 0) & (in_catalogue < counts)
        if not kept.any():
            raise UserError(
                f"dataset.domains: no product of {config['dataset.name']} has images of both "
                "kinds to train on (catalogue images have the role catalogue or the domain shop)."
            )
    if not kept.any():
        raise UserError(
            f"{config['dataset.name']}: no training product has two images, which a pair needs."
        )
    if np.count_nonzero(kept & (counts > 0)) == 1:
        raise UserError(
            f"{config['dataset.name']}: training has one product, but needs at least two."
        )
    return train.select(kept[train.labels])


def of_catalogue(table):
    """bool [N]: the images that queries search."""
    found = (table.roles == "catalogue") | (table.splits == "catalogue")
    return found | (table.domains == "shop") if config["dataset.domains"] else found


def _held_out(table, pool):
    """bool [N]: the held-out rows of the pool (training and validation splits)."""
    how, share = config["dataset.validation.holdout"], config["dataset.validation.share"]
    if not config["dataset.validation"]:
        return np.zeros(len(table), bool)
    own = table.splits == "val"
    if not how and own.any():
        return own
    if not 0 <= share < 1:
        raise UserError(f"dataset.validation.share={share} must be at least 0 and below 1.")
    held = np.zeros(len(table), bool)
    rows = np.flatnonzero(pool)
    share = share or _share_of(len(set(table.products[rows].tolist())))
    if how in ("", "products", "both"):
        parts = split_by_product(table.products[rows], (1 - share, share, 0))
        held[rows] = parts == "val"
    if how in ("photos", "both"):
        rows = np.flatnonzero(pool & ~held & ~of_catalogue(table))
        held[rows] = _share_of_each(table.products[rows], table.ids[rows], share)
    return held


def _share_of(products):
    """A tenth of the products, but twenty if that is at most a fifth."""
    return max(0.1, min(0.2, 20 / max(products, 1)))


def _is_carved(table):
    """Whether products are held out because the user's data have no validation split."""
    own = (table.splits == "val").any() and not config["dataset.validation.holdout"]
    by_product = config["dataset.validation.holdout"] in ("", "products")
    of_user = config["dataset.name"] in ("manifest", "folder")
    return config["dataset.validation"] and of_user and by_product and not own


def _without_copies(table, pool, held, shown):
    """(held, repeated), bool [N]: near duplicates of training products are not held out, and of
    near duplicates of one image, such as frames of a video, validation keeps one.

    With several, each would find another one, and recall would be 1.0 for any embedding.
    """
    copies = np.arange(len(table))
    rows = np.flatnonzero(pool)
    copies[rows] = rows[_copies(*_source(), config["dataset.train_where"])]
    seen = held & np.isin(copies, copies[pool & ~held])
    apart = held & ~np.isin(table.products, table.products[seen])
    held = apart if apart.any() else held
    kept = np.zeros(len(table), bool)
    candidates = np.flatnonzero(held & ~shown)
    kept[candidates[np.unique(copies[candidates], return_index=True)[1]]] = True
    return held, held & ~shown & ~kept


@functools.lru_cache(maxsize=1)
def _copies(*source_and_where):
    """`audit.copies_of` of the images except the test split; reads up to HASHED images."""
    *source, where = source_and_where
    del where  # only part of the cache key
    table = _where(_load(*source), "dataset.train_where")
    table = table.select(np.isin(table.splits, ("train", "val")))
    return audit.copies_of(table) if len(table) <= HASHED else np.arange(len(table))


def _share_of_each(products, ids, share):
    """bool [N]: a fraction of each product's images, chosen by the hashes of their ids."""
    keys = np.array([hashlib.sha256(name.encode()).hexdigest() for name in ids.tolist()])
    codes = np.unique(products, return_inverse=True)[1]
    order, counts = np.lexsort((keys, codes)), np.bincount(codes)
    place = np.empty(len(ids), np.int64)
    place[order] = np.arange(len(ids)) - (np.cumsum(counts) - counts)[codes[order]]
    return place < np.rint(share * counts)[codes]


def _where(table, key):
    """The rows that satisfy the conditions of a key."""
    try:
        return select_where(table, config[key])
    except ValueError as error:
        raise UserError(f"{key}={config[key]}: {error}.") from None


def _table():
    return _load(*_source())


def _load(*source):
    return _read(*source)[0]


def _source():
    keys = ("name", "base_path", "image_path", "columns", "on_bad_image", "max_pixels")
    return tuple(config[f"dataset.{key}"] for key in keys)


@functools.lru_cache(maxsize=1)
def _read(name, base, images, columns, on_bad_image, max_pixels):
    """(ProductTable, number of excluded unreadable images)."""
    name = ALIASES.get(name, name)
    base, images = os.path.expanduser(base), os.path.expanduser(images)
    if not base and name != "glyphs":
        raise UserError(f"dataset.base_path is empty: give the folder of the data set {name!r}.")
    options = {}
    if columns and name != "manifest":
        raise UserError(f"dataset.columns: the data set {name!r} has its own columns.")
    if name in ("manifest", "folder"):
        options = {"fractions": (0.8, 0.0, 0.2)}  # validation: see `_is_carved`
    if name == "manifest":
        options |= {"root": images or None, "columns": columns}
        base = os.path.join(base, "manifest.csv") if os.path.isdir(base) else base
    elif images and name not in LISTED:
        raise UserError(f"dataset.image_path: the data set {name!r} has no other image folder.")
    elif images:
        options = {"check_files": False}
    table = READERS[name](*([] if name == "glyphs" else [base]), **options)
    if images and name in LISTED:
        paths = [os.path.join(images, *path.split("/")) for path in table.ids.tolist()]
        layout.check_files(paths, f"dataset.image_path={images}")
        table = dataclasses.replace(table, paths=paths)
    if table.images is not None and table.images.shape[-1] == 1:
        table = dataclasses.replace(table, images=np.repeat(table.images, 3, axis=-1))
    usable = pipeline.usable_images(table, on_bad_image, max_pixels)
    return usable, len(table) - len(usable)
