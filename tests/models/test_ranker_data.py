"""What the ranker trains on, holds out and puts into a batch."""

import collections
import importlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from metriclearn.datasets import ProductTable
from models import ranker
from models.ranker import samplers
from trainer.config import UserError

# `ranker.datasets` is the function of that module.
datasets = importlib.import_module("models.ranker.datasets")
tables = importlib.import_module("models.ranker.tables")


@pytest.fixture(autouse=True)
def config():
    """The ranker's configuration, set back afterwards."""
    before = ranker.config.to_dict()
    ranker.config.update(
        {
            "model.batch_size": 8,
            "model.default_image_dimensions": [16, 16, 3],
            "model.hub_address": "convnet",  # without weights: nothing is cached
        }
    )
    yield ranker.config
    ranker.config.update(before)


def shop(monkeypatch, *, photos=10, products=12, categories=3, val=0, domains=None):
    """A table of photos, train, val and test, of products that each have one catalogue picture."""
    rows = []
    for p in range(products):
        for i in range(photos + 3):
            split = "test" if i >= photos else "val" if i < val else "train"
            rows.append((f"p{p}/{i}", f"p{p}", f"c{p % categories}", split, ""))
        rows.append((f"p{p}/shop", f"p{p}", f"c{p % categories}", "catalogue", "catalogue"))
    ids, names, kinds, splits, roles = zip(*rows, strict=True)
    table = ProductTable(
        ids=ids,
        products=names,
        categories=kinds,
        splits=splits,
        roles=roles,
        domains=domains and [domains(i) for i in ids],
        images=np.zeros((len(rows), 16, 16, 3), np.uint8),
        extra={"seen": ["no" if int(n[1:]) < 4 else "yes" for n in names]},
    )
    monkeypatch.setattr(tables, "_table", lambda: table)
    return table


def batches(table, count=40):
    """Rows of the first batches of a table's training sampler, [count, batch size]."""
    sample = samplers.create(table, tables.of_catalogue(table))
    dataset = tf.data.Dataset.range(count).map(sample)
    return np.stack(list(dataset.as_numpy_iterator()))


# ---------------------------------------------------------------------------- what is held out


def test_validation_is_the_data_sets_own_split(monkeypatch):
    shop(monkeypatch, val=2)
    train, (held, shown) = datasets.training_tables()
    assert set(train.splits) == {"train"} and len(train) == 12 * 8
    assert set(held.splits[~shown]) == {"val"} and set(held.splits[shown]) == {"catalogue"}
    assert shown.sum() == 12


def test_held_out_products_are_not_trained_on(monkeypatch, config):
    shop(monkeypatch, val=2)
    config.update(
        {
            "dataset.validation.holdout": "products",
            "dataset.validation.share": 0.25,
            "dataset.domains": True,
        }
    )
    train, (held, shown) = datasets.training_tables()
    assert not set(train.products) & set(held.products)
    assert len(set(held.products)) == 3 and len(set(train.products)) == 9
    # All pictures of a product go the same way, its shop picture too.
    assert (len(train), len(held), shown.sum()) == (9 * 11, 3 * 11, 3)


def test_held_out_photos_are_a_share_of_each_product(monkeypatch, config):
    table = shop(monkeypatch)
    config.update({"dataset.validation.holdout": "photos", "dataset.validation.share": 0.3})
    train, (held, shown) = datasets.training_tables()
    assert set(collections.Counter(held.products[~shown]).values()) == {3}
    assert set(collections.Counter(train.products).values()) == {7}
    assert not set(train.ids) & set(held.ids) and "test" not in set(held.splits)
    # The choice hangs on the names alone, not on the order of rows.
    shuffled = table.select(np.random.default_rng(0).permutation(len(table)))
    monkeypatch.setattr(tables, "_table", lambda: shuffled)
    assert set(datasets.training_tables()[1][0].ids) == set(held.ids)


def test_held_out_photos_search_the_catalogue_that_is_trained_on(monkeypatch, config):
    shop(monkeypatch, domains=lambda name: "shop" if name.endswith(("/0", "shop")) else "consumer")
    photos = {"dataset.validation.holdout": "photos", "dataset.validation.share": 0.3}
    config.update({"dataset.domains": True, **photos})
    train, (held, shown) = datasets.training_tables()
    assert set(held.ids[shown]) <= set(train.ids) and not set(held.ids[~shown]) & set(train.ids)
    assert set(collections.Counter(held.products[shown]).values()) == {2}


def test_both_holds_out_products_and_photos(monkeypatch, config):
    shop(monkeypatch)
    config.update({"dataset.validation.holdout": "both", "dataset.validation.share": 0.25})
    train, (held, shown) = datasets.training_tables()
    counts = collections.Counter(held.products[~shown])
    assert sorted(counts.values()) == [2] * 9 + [10] * 3
    assert len(set(train.products)) == 9


def test_without_validation_all_but_test_is_trained_on(monkeypatch, config):
    shop(monkeypatch, val=2)
    config["dataset.validation"] = False
    train, validation = datasets.training_tables()
    assert validation is None and len(train) == 120
    assert "vld" not in ranker.datasets()


def test_conditions_choose_rows_for_training_and_for_evaluation(monkeypatch, config):
    shop(monkeypatch)
    config.update({"dataset.train_where": "seen=yes", "dataset.test_where": "product=p0|p1"})
    train, (held, _) = datasets.training_tables()
    assert not {"p0", "p1", "p2", "p3"} & (set(train.products) | set(held.products))
    found = ranker.datasets()
    for name, count in (("retrieval_query", 6), ("retrieval_index", 2)):
        rows = [p for batch in found[name].as_numpy_iterator() for p in batch["product"]]
        assert len(rows) == count and set(rows) == {b"p0", b"p1"}


@pytest.mark.parametrize(
    "values, words",
    [
        ({"dataset.train_where": "sene=yes"}, "dataset.train_where.*did you mean 'seen'"),
        ({"dataset.train_where": "seen=maybe"}, "seen=maybe: no row has this seen"),
        (
            {"dataset.test_where": "seen=no|yess"},
            "no row has this seen.*did you mean 'yes'",
        ),
        ({"dataset.train_where": "seen"}, "'seen' is not column=value"),
        (
            {"dataset.validation.holdout": "photos", "dataset.validation.share": 0.01},
            "no image is held out; raise dataset.validation.share",
        ),
        ({"dataset.augment": ["fly"]}, "no 'fly'; choose from .*flip"),
        ({"model.default_image_dimensions": [16, 16, 1]}, "3 channels"),
        ({"model.batch_size": 9}, "model.batch_size=9 is not a multiple of 4"),
        (
            {"model.batch_size": 64, "dataset.sampler": "pairs"},
            "needs 32 products of 2 images; 10 can be trained on: lower model.batch_size to 20",
        ),
        ({"model.random_within_class": 1.0, "model.batch_size": 20}, "no category has the 5"),
        (
            {
                "model.random_within_class": 1.0,
                "model.batch_size": 20,
                "model.rwc.by_batch": False,
            },
            "no category has the 5 products",
        ),
        (
            {"dataset.sampler": "hierarchical", "dataset.domains": True},
            "hierarchical cannot be",
        ),
        (
            {"dataset.domains": True, "dataset.catalogue_images_per_product": 4},
            "catalogue_images_per_product=4",
        ),
    ],
)
def test_what_cannot_be_had_is_said(monkeypatch, config, values, words):
    shop(monkeypatch)
    config.update(values)
    with pytest.raises(UserError, match=words):
        dict(ranker.datasets())


def test_held_out_products_of_one_image_cannot_be_found(monkeypatch, config):
    rows = [(f"p{p}", split) for p in range(9) for split in ("train", "train", "train", "val")]
    products, splits = zip(*rows, strict=True)
    ids, pixels = [str(i) for i in range(len(rows))], np.zeros((len(rows), 16, 16, 3), np.uint8)
    table = ProductTable(products=products, splits=splits, ids=ids, images=pixels)
    monkeypatch.setattr(tables, "_table", lambda: table)
    with pytest.raises(UserError, match="dataset.validation: no held-out product .* --nodataset"):
        dict(ranker.datasets())
    config["dataset.validation"] = False
    assert set(ranker.datasets()) == {"trn"}


def test_categories_are_needed_where_batches_go_by_them(monkeypatch, config):
    table = shop(monkeypatch).where(split="train")
    bare = ProductTable(ids=table.ids, products=table.products, images=table.images)
    config["model.random_within_class"] = 0.8
    with pytest.raises(UserError, match="need categories"):
        batches(bare)


# ---------------------------------------------------------------------------- a batch


def test_a_shop_of_few_products_shows_more_images_of_each(monkeypatch, config):
    table = shop(monkeypatch, products=11).where(split="train")
    config["model.batch_size"] = 64
    for batch in batches(table, 3):
        counts = collections.Counter(table.products[batch].tolist())
        assert len(counts) == 8 and set(counts.values()) == {8}


def test_a_batch_has_both_domains_of_each_product(monkeypatch, config):
    shop(monkeypatch)
    config.update({"dataset.domains": True, "model.random_within_class": 0.5})
    train, _ = datasets.training_tables()
    for rows in batches(train).reshape(-1, 2, 4):
        assert all(len(set(train.products[product])) == 1 for product in rows)
        assert len(set(train.products[rows.ravel()])) == 2
        kinds = train.roles[rows] == "catalogue"
        np.testing.assert_array_equal(kinds, [[False, False, False, True]] * 2)
        assert len(set(rows.ravel())) == 8


@pytest.mark.parametrize("intradomain", [False, True])
def test_pairs_of_two_domains_or_of_any(monkeypatch, config, intradomain):
    shop(monkeypatch, domains=lambda name: "shop" if int(name[-1], 36) % 2 else "consumer")
    config.update(
        {
            "dataset.domains": True,
            "dataset.intradomain_pairs": intradomain,
            "dataset.sampler": "pairs",
        }
    )
    train, _ = datasets.training_tables()
    query, positive = np.split(batches(train), 2, axis=1)
    np.testing.assert_array_equal(train.products[query], train.products[positive])
    assert (query != positive).all()
    across = tables.of_catalogue(train)[positive] & ~tables.of_catalogue(train)[query]
    assert across.all() != intradomain


def test_pictures_of_one_kind_only_are_of_no_use_to_batches_of_both(monkeypatch, config):
    table = shop(monkeypatch)
    lacking = (table.products == "p0") & (table.roles == "catalogue")
    monkeypatch.setattr(tables, "_table", lambda: table.select(~lacking))
    config.update({"dataset.domains": True, "dataset.intradomain_pairs": True})
    train, _ = datasets.training_tables()
    rows = batches(train).reshape(-1, 4)
    assert (train.products[rows] == train.products[rows[:, :1]]).all()
    assert "p0" not in train.products


def test_domains_without_two_kinds_of_pictures_are_refused(monkeypatch, config):
    table = shop(monkeypatch)
    monkeypatch.setattr(tables, "_table", lambda: table.where(split=("train", "test")))
    config["dataset.domains"] = True
    with pytest.raises(UserError, match="images of both kinds"):
        ranker.datasets()["trn"]


@pytest.mark.parametrize("sampler, by_batch", [("pk", False), ("pairs", True)])
def test_random_within_class_is_the_share_of_batches_or_passes(
    monkeypatch, config, sampler, by_batch
):
    shop(monkeypatch, products=13, categories=3)
    config.update(
        {
            "dataset.validation": False,
            "dataset.sampler": sampler,
            "model.random_within_class": 0.75,
            "model.rwc.by_batch": by_batch,
            "dataset.images_per_product": 2,
        }
    )
    train, _ = datasets.training_tables()
    # Five, four and four products in batches of four: a pass is two, one and one batches, and
    # one in four of the batches, or of the passes (of four batches), mixes all.
    steps = 2 * (2 + 1 + 1) + 2 * (4 if not by_batch else 1)
    found = [set(train.categories[rows]) for rows in batches(train, steps)]
    single = [next(iter(kinds)) for kinds in found if len(kinds) == 1]
    counts = collections.Counter(single)
    if by_batch:
        assert len(single) >= round(0.75 * steps) - 1
    else:
        assert [counts[c] >= n for c, n in (("c0", 4), ("c1", 2), ("c2", 2))] == [True] * 3
        assert len(single) <= 8 + 2


def test_a_hierarchical_batch_is_of_categories_products_pictures(monkeypatch, config):
    shop(monkeypatch)
    config.update(
        {
            "dataset.sampler": "hierarchical",
            "dataset.categories_per_batch": 2,
            "dataset.images_per_product": 2,
        }
    )
    train, _ = datasets.training_tables()
    for rows in batches(train):
        assert len(set(train.categories[rows])) == 2 and len(set(train.products[rows])) == 4


def test_products_of_one_picture_are_left_out_of_pairs(monkeypatch, config):
    table = shop(monkeypatch, products=6)
    keep = (table.products != "p2") | (table.ids == "p2/1") | (table.splits == "test")
    monkeypatch.setattr(tables, "_table", lambda: table.select(keep))
    config["dataset.validation"] = False
    assert "p2" not in datasets.training_tables()[0].products
    config["model.loss"] = "arcface"
    assert "p2" in datasets.training_tables()[0].products
    config["model.loss"] = "triplet"
    lonely = table.select([1, 20, 40])
    monkeypatch.setattr(tables, "_table", lambda: lonely)
    with pytest.raises(UserError, match="every product has one image"):
        datasets.training_tables()


# ---------------------------------------------------------------------------- files


def test_pictures_of_every_kind_are_read_as_colour(tmp_path, config):
    """Grey, RGBA, CMYK, 16-bit and animated pictures, and one that is none."""
    red = Image.new("RGB", (20, 20), (200, 30, 30))
    deep = Image.fromarray(np.full((20, 20), 0x8000, np.uint16))
    red.convert("L").save(tmp_path / "grey.jpg")
    red.convert("RGBA").save(tmp_path / "alpha.png")
    red.convert("CMYK").save(tmp_path / "cmyk.jpg")
    deep.save(tmp_path / "deep.png")
    frames = [Image.new("RGB", (20, 20), (0, 0, 255))]
    red.save(tmp_path / "moving.gif", save_all=True, append_images=frames)
    names = ["grey.jpg", "alpha.png", "cmyk.jpg", "deep.png", "moving.gif"]
    lines = ["path,label,split", *(f"{name},p{i % 2},train" for i, name in enumerate(names))]
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("\n".join([*lines, "none.jpg,p1,train"]) + "\n")
    (tmp_path / "none.jpg").write_bytes(b"not a picture")
    tables._read.cache_clear()
    config.update(
        {
            "dataset.name": "manifest",
            "dataset.base_path": str(tmp_path),
            "dataset.validation": False,
            "dataset.augment": ["crop", "flip", "colour", "noise", "erasing", "blur"],
            "dataset.on_bad_image": "skip",
        }
    )
    with pytest.warns(UserWarning, match="none.jpg"):
        batch = next(ranker.datasets()["trn"].as_numpy_iterator())
    assert batch["image"].shape == (8, 16, 16, 3)
    config["dataset.augment"] = []
    pixels = {}
    for batch in ranker.datasets()["trn"].take(4).as_numpy_iterator():
        pixels |= dict(zip(batch["id"].tolist(), batch["image"], strict=True))
    colour = {name.decode(): image.mean((0, 1)) for name, image in pixels.items()}
    assert set(colour) == set(names)
    for name in ("alpha.png", "cmyk.jpg", "moving.gif"):
        np.testing.assert_allclose(colour[name], [200, 30, 30], atol=12)
    assert np.ptp(colour["grey.jpg"]) == 0
    np.testing.assert_allclose(colour["deep.png"], 128)
    config["dataset.on_bad_image"] = "error"
    with pytest.raises(tf.errors.InvalidArgumentError, match="none.jpg.*not a JPEG"):
        list(ranker.datasets()["trn"].take(9))


def test_a_data_set_is_found_by_name_and_its_pictures_elsewhere(tmp_path, config):
    header = "image_id class_id super_class_id path\n"
    names = [f"mug_final/{p}_{i}.JPG" for p in range(4) for i in range(4)]
    lines = [f"{n} {n // 4} 1 {name}\n" for n, name in enumerate(names)]
    lists, pictures = tmp_path / "lists", tmp_path / "pictures"
    lists.mkdir()
    (lists / "Ebay_train.txt").write_text(header + "".join(lines[:8]))
    (lists / "Ebay_test.txt").write_text(header + "".join(lines[8:]))
    config.update(
        {
            "dataset.name": "Stanford_Online_Products",
            "dataset.base_path": str(lists),
            "dataset.image_path": str(pictures),
            "dataset.validation": False,
        }
    )
    with pytest.raises(ValueError, match="image_path.*16 of 16 listed images do not exist"):
        ranker.datasets()
    (pictures / "mug_final").mkdir(parents=True)
    for name in names:
        Image.new("RGB", (9, 9)).save(pictures / name)
    assert next(ranker.datasets()["trn"].as_numpy_iterator())["image"].shape == (8, 16, 16, 3)
    config["dataset.base_path"] = ""
    with pytest.raises(UserError, match="dataset.base_path is empty.*'sop'"):
        ranker.datasets()


# ---------------------------------------------------------------------------- data of one's own


def manifest(folder, frames):
    """A manifest without splits: 30 products of two images, and `frames` copies of the second."""
    lines, random = ["path,label"], np.random.default_rng(0)
    for p in range(30):
        for i in range(2 + frames):
            if i < 2:
                small = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                image = Image.fromarray(small).resize((48, 48), Image.Resampling.BICUBIC)
            pixels = np.asarray(image).astype(int) + (i > 1) * i  # frames: a little brighter
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{p}-{i}.png")
            lines.append(f"{p}-{i}.png,p{p}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


@pytest.mark.parametrize("frames", [0, 2])
def test_products_are_held_out_where_no_split_says_so(tmp_path, config, frames):
    config.update({"dataset.name": "manifest", "dataset.base_path": manifest(tmp_path, frames)})
    train, (held, shown) = datasets.training_tables()
    assert not set(train.products) & set(held.products) and not shown.any()
    assert len(set(held.products)) == 5 and len(held) == 10  # a fifth of 24; no copies
    assert len(train) == 19 * (2 + frames)
    lines = ranker.notes()
    assert [line.split()[:5] for line in lines[1:4]] == [
        ["train", "19", str(len(train)), *lines[1].split()[3:5]],
        ["validation", "5", "10", "10", "10"],
        ["test", "6", str(6 * (2 + frames)), str(6 * (2 + frames)), str(6 * (2 + frames))],
    ]
    assert f"{2 + frames} to {2 + frames}, median {2 + frames}" in lines[1]
    excluded = f"excluded images: {5 * frames} for validation, near duplicates"
    assert (excluded in lines) == bool(frames)
    assert "5 products are held out" in lines[-1]


def test_a_product_that_training_nearly_shows_is_not_held_out(tmp_path, config):
    config.update({"dataset.name": "manifest", "dataset.base_path": manifest(tmp_path, 0)})
    train, (held, _) = datasets.training_tables()
    shared, other = held.ids[0], train.ids[0]
    (tmp_path / shared).write_bytes((tmp_path / other).read_bytes())
    tables._read.cache_clear(), tables._copies.cache_clear()
    again, (fewer, _) = datasets.training_tables()
    assert set(held.products) - set(fewer.products) == {held.products[0]}
    assert held.products[0] in again.products


def test_the_table_at_the_start_names_what_is_unreadable_or_not_chosen(tmp_path, config):
    lines = ["path,label,split,kind"]
    for n in range(24):
        name, split = f"{n}.png", ("train", "val", "test")[n // 8]
        Image.new("RGB", (8, 8), (9 * n, n, 90)).save(tmp_path / name)
        lines.append(f"{name},p{n // 2},{split},{'shoes' if n % 8 < 6 else 'bags'}")
    (tmp_path / "0.png").write_bytes(b"no image")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    config.update({"dataset.name": "manifest", "dataset.base_path": str(tmp_path)})
    config.update({f"dataset.{key}_where": "kind=shoes" for key in ("train", "test")})
    config["dataset.on_bad_image"] = "skip"
    with pytest.warns(UserWarning, match="cannot be read"):
        (excluded,) = (line for line in ranker.notes() if line.startswith("excluded"))
    assert excluded == (
        "excluded images: 1 unreadable; 4 excluded by dataset.train_where; 2 excluded by "
        "dataset.test_where; 1 for training, without a pair"
    )


def test_one_product_cannot_be_told_from_others(monkeypatch, config):
    shop(monkeypatch, products=1)
    config["dataset.validation"] = False
    with pytest.raises(UserError, match="one product, but needs at least two"):
        datasets.training_tables()
