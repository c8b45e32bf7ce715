"""Embedding picture files with a SavedModel, without any model module."""

import hashlib
import itertools
import os
import pathlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from metriclearn.datasets import image_files
from retrieval.embeddings import embedder, images, passes, store
from retrieval.reports import page

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with pictures of two products, one damaged, and a manifest of them."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, color in (("a/1.png", 10), ("a/2.jpg", 50), ("b/c/3.png", 90), ("4.png", 120)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20), (color, color, 2 * color)).save(folder / name)
    (folder / "b/5.jpg").write_bytes((folder / "a/2.jpg").read_bytes()[:200])
    (folder / "notes.txt").write_text("no picture")
    rows = ["path,label,category,role", "a/1.png,x,k,query", "a/2.jpg,x,k,catalogue"]
    (folder / "shop.csv").write_text("\n".join([*rows, "b/c/3.png,y,,catalogue"]) + "\n")
    return folder


@pytest.fixture
def mean(mean_color):
    return mean_color


def test_a_folder_tells_products_by_its_folders(pictures):
    found = images.table(str(pictures))
    assert found.ids.tolist() == ["a/1.png", "a/2.jpg", "b/5.jpg", "b/c/3.png", "4.png"]
    assert found.products.tolist() == ["a", "a", "b", "b", "4.png"]


def test_a_manifest_is_read_as_training_reads_it(pictures, tmp_path):
    csv = str(pictures / "shop.csv")
    found = images.table(csv=csv, where="role=catalogue")
    assert found.ids.tolist() == ["a/2.jpg", "b/c/3.png"]
    assert found.products.tolist() == ["x", "y"] and found.categories.tolist() == ["k", ""]
    for given, message in (
        ({"csv": csv, "where": "role=nobody"}, "--where=role=nobody: role=nobody: no row has"),
        ({"csv": csv, "where": "rôle=x"}, "no column 'rôle'.*did you mean 'role'"),
        ({"csv": csv, "folder": "x"}, "--folder and --manifest: give one of them"),
        ({"folder": "x", "columns": "path=file"}, "--columns: needs --manifest"),
        ({"folder": str(tmp_path)}, "contains no image"),
        ({"folder": str(tmp_path / "none")}, "there is no such folder or image"),
    ):
        with pytest.raises(ValueError, match=message):
            images.table(**given)


KINDS = ["RGB.jpg", "L.jpg", "RGBA.png", "LA.png", "P.png", "I;16.png", "RGBA.webp"]


@pytest.mark.parametrize("kind, channels", itertools.product([*KINDS, "CMYK.jpg"], [1, 3]))
def test_pictures_are_those_that_training_sees(tmp_path, kind, channels):
    """Of every kind, also where a large one is reduced: to some grey levels of JPEG's rounding."""
    import tensorflow as tf

    from metriclearn.datasets import images as tensors

    y, x = np.mgrid[:70, :110]
    colours = np.stack([2 * x, 3 * y, x + y, 2 * (x > 20) * (y + 50)], 2).astype(np.uint8)
    mode, suffix = kind.split(".")
    if mode == "I;16":
        odd = Image.fromarray((600 * x + y).astype(np.uint16))
    else:
        odd = Image.fromarray(colours)
        odd = odd.quantize(99) if mode == "P" else odd.convert(mode)
    path = tmp_path / f"odd.{suffix}"
    odd.save(path, **({"lossless": True} if suffix == "webp" else {"quality": 95}))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for size in ((70, 110), (30, 30)):
            expected = tensors.decode(tf.constant(path.read_bytes()), channels=channels, least=size)
            expected = session.run(expected[0]).astype(int)
            found = image_files.read(path, channels, size)[0].astype(int)
            assert found.shape == expected.shape == (70 // (70 // size[0]), *found.shape[1:])
            assert np.abs(found - expected).max() <= (8 if suffix == "jpg" else 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_the_camera_was(tmp_path, orientation):
    exif, path = Image.Exif(), tmp_path / "a.png"
    exif[ExifTags.Base.Orientation] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7), np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    for found in (image_files.read(path, 1)[0], page.images_at({"a": path})["a"]):
        np.testing.assert_array_equal(found[..., 0], upright)


def test_damaged_notes_of_a_camera_do_not_matter(tmp_path):
    exif, path = Image.Exif(), tmp_path / "a.jpg"
    exif[ExifTags.Base.Orientation], exif[ExifTags.Base.Make] = 6, "maker"
    Image.new("L", (40, 20)).save(path, exif=exif)
    data = bytearray(path.read_bytes())
    make = data.index(bytes([1, 15, 0, 2]))  # tag 271, a text
    data[make + 1] = 0  # now tag 256, which is to be a number
    path.write_bytes(data)
    with pytest.raises(Exception, match="argument is not an integer"):
        ImageOps.exif_transpose(Image.open(path))
    assert image_files.read(path, 1, (20, 20))[0].shape == (40, 20, 1)


def of_mean(mean, **options):
    return embedder.Embedder.of_saved_model(mean, **{"input_range": "0,1"} | options)


def test_bad_images_by_policy(pictures, mean, tmp_path):
    rows = images.table(str(pictures))
    with of_mean(mean) as made:
        with pytest.raises(ValueError, match=r"^cannot read the image '?.*b/5\.jpg'?: "):
            passes.embed_table(rows, tmp_path / "error", made)
        options = {"on_bad_image": "skip", "batch_size": 2}
        manifest = passes.embed_table(rows, tmp_path / "skip", made, **options)
        again = passes.embed_table(rows, tmp_path / "skip", made, **options)
    assert again == manifest and again["count"] == 4
    found = store.read(tmp_path / "skip")
    assert found.ids.tolist() == ["a/1.png", "a/2.jpg", "b/c/3.png", "4.png"]
    (line,) = [line for shard in manifest["shards"] for line in shard["skipped"]]
    assert "b/5.jpg: the file is truncated" in line
    colors = np.array([10, 50, 90, 120])[:, None] * [1, 1, 2] / 255
    np.testing.assert_allclose(found.embeddings, colors * [1, 2, 3], atol=0.03)
    assert all(map(os.path.isfile, found.paths))
    with open(found.paths[1], "rb") as file:
        assert found.hashes[1] == hashlib.sha256(file.read()).hexdigest()


def test_boxes_of_a_manifest_are_cropped_to(mean, tmp_path):
    """As training crops: the left half is dark, the right half bright."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 20:] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    csv = tmp_path / "m.csv"
    csv.write_text("path,label,x1,y1,x2,y2\na.png,p,25,2,38,18\n")
    with of_mean(mean, input_range="0,255") as made:
        passes.embed_table(images.table(csv=str(csv)), tmp_path / "s", made)
    np.testing.assert_allclose(store.read(tmp_path / "s").embeddings, [[200, 400, 600]])


def test_another_photo_of_the_same_name_is_not_taken_for_the_old_one(mean, tmp_path):
    with of_mean(mean) as made:
        for color in (10, 200):
            Image.new("RGB", (40, 20), (color, 0, 0)).save(tmp_path / "photo.png")
            rows = images.table(str(tmp_path / "photo.png"))
            if color == 10:
                passes.embed_table(rows, tmp_path / "s", made)
        with pytest.raises(ValueError, match="contains embeddings of other images: use another"):
            passes.embed_table(rows, tmp_path / "s", made)


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_killed_pass_over_files_resumes(pictures, mean, tmp_path, monkeypatch, policy):
    rows = images.table(str(pictures))
    if policy == "error":
        rows = rows.select(rows.ids != "b/5.jpg")
    arguments = {"on_bad_image": policy, "batch_size": 1, "shard_rows": 1}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with of_mean(mean) as made:
        expected = passes.embed_table(rows, whole, made, **arguments)
        append, run, ran = store.append, made.run, []

        def killed(folder, manifest, *given):
            if len(manifest["shards"]) == 2:
                (folder / ".half.tmp").write_bytes(b"written by one that was killed")
                raise KeyboardInterrupt
            append(folder, manifest, *given)

        with monkeypatch.context() as patch:
            patch.setattr(store, "append", killed)
            with pytest.raises(KeyboardInterrupt):
                passes.embed_table(rows, broken, made, **arguments)
        with pytest.raises(ValueError, match="of another batch_size"):
            passes.embed_table(rows, broken, made, **arguments | {"batch_size": 2})
        monkeypatch.setattr(made, "run", lambda batch: ran.append(batch["id"]) or run(batch))
        assert passes.embed_table(rows, broken, made, **arguments) == expected
    assert not (broken / ".half.tmp").exists()
    assert [name.decode() for (name,) in ran] == ["b/c/3.png", "4.png"]
    a, b = store.read(whole), store.read(broken)
    np.testing.assert_array_equal(a.embeddings, b.embeddings)
    assert a.ids.tolist() == b.ids.tolist()


def test_the_size_is_the_signatures_or_asked_for(pictures, mean, tmp_path):
    import tensorflow as tf

    with pytest.raises(ValueError, match="takes 8 x 16 only"):
        of_mean(mean, image_size=(9, 9))

    class Sides(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
        def serve(self, picture):
            sides = tf.cast(tf.shape(picture)[1:3], tf.float32)
            return {"out": tf.tile(sides[None], [tf.shape(picture)[0], 1])}

    module, folder = Sides(), str(tmp_path / "sides")
    tf.saved_model.save(module, folder, signatures=module.serve)
    with pytest.raises(ValueError, match="takes any size; choose one"):
        of_mean(folder, input_range="")
    with of_mean(folder, input_range="", image_size=(5, 7)) as made:
        passes.embed_table(images.table(str(pictures / "a")), tmp_path / "s", made)
    assert store.read(tmp_path / "s").embeddings.tolist() == [[5, 7], [5, 7]]


def test_equal_names_in_two_folders_are_two_images_and_a_link_is_one(mean, tmp_path):
    """From image files to figures; products are told by color."""
    from retrieval.evaluation import figures, inputs

    for folder, shift in (("photos", 0), ("shop", 4)):
        for n in range(4):
            path = tmp_path / folder / f"p{n}" / "1.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (16, 8), (60 * n + shift, 200 - 50 * n, 20)).save(path)
    (tmp_path / "linked").symlink_to(tmp_path / "photos")
    (tmp_path / "m.csv").write_text(
        "path,label\n" + "".join(f"photos/p{n}/1.png,p{n}\n" for n in range(4))
    )
    with of_mean(mean) as made:
        for name in ("photos", "shop", "linked"):
            passes.embed_table(images.table(str(tmp_path / name)), tmp_path / f"s-{name}", made)
        rows = images.table(csv=str(tmp_path / "m.csv"))
        passes.embed_table(rows, tmp_path / "s-manifest", made)

    def evaluated(*names):
        sets = inputs.load_pair(*((str(tmp_path / f"s-{name}"),) for name in names))
        return figures.evaluate(*sets).figures

    found = evaluated("photos", "shop")
    assert found.recall[1] == 1 and found.num_self_excluded == 0
    for same in ("linked", "manifest"):
        with pytest.raises(ValueError, match="no query has a relevant catalogue item"):
            evaluated("photos", same)


def test_images_of_a_model_may_be_read_from_their_files(pictures):
    """With the proportions of the file, where it can be read; else as the model sees them."""
    import types

    import tensorflow as tf

    ids = ["a/1.png", "a/2.jpg", "b/5.jpg", "none"]
    paths = [str(pictures / name) if name != "none" else "" for name in ids]

    def datasets():
        entries = {"id": ids, "path": paths, "image": np.zeros((4, 8, 8, 3), np.uint8)}
        return {"retrieval_index": tf.data.Dataset.from_tensor_slices(entries).batch(3)}

    model = types.SimpleNamespace(__name__="m", datasets=datasets)
    found = images.wanted_of(model, "retrieval_index", ids[1:], page.image_at)
    assert {name: image.shape for name, image in found.items()} == {
        "a/2.jpg": (20, 40, 3), "b/5.jpg": (8, 8, 3), "none": (8, 8, 3),
    }  # fmt: skip
    plain = images.wanted_of(model, "retrieval_index", ids[1:])
    assert {image.shape for image in plain.values()} == {(8, 8, 3)}
