"""Embedding picture files with a SavedModel, without any model module."""

import itertools
import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image, ImageOps

from retrieval import embed, listing, page, store
from trainer import config, experiment

ROOT = pathlib.Path(__file__).parents[2]


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


@pytest.fixture(scope="module")
def mean(tmp_path_factory):
    """A SavedModel of floats that gives the mean colour, for pictures of 8 x 16."""
    import tensorflow as tf

    class Mean(tf.Module):
        def __init__(self):
            self.weight = tf.Variable([1.0, 2.0, 3.0])

        @tf.function(input_signature=[tf.TensorSpec([None, 8, 16, 3], tf.float32)])
        def serve(self, picture):
            return {"embeddings": tf.reduce_mean(picture, [1, 2]) * self.weight}

    module = Mean()
    folder = str(tmp_path_factory.mktemp("mean"))
    tf.saved_model.save(module, folder, signatures=module.serve)
    return folder


def test_a_folder_tells_products_by_its_folders(pictures):
    found = listing.of_folder(pictures)
    assert found["id"].tolist() == ["4.png", "a/1.png", "a/2.jpg", "b/5.jpg", "b/c/3.png"]
    assert found["product"].tolist() == ["4.png", "a", "a", "b", "b/c"]


def test_a_manifest_is_read_by_row(pictures, tmp_path):
    found = listing.of_manifest(pictures / "shop.csv", ["role=catalogue"])
    assert found["id"].tolist() == ["a/2.jpg", "b/c/3.png"]
    assert found["product"].tolist() == ["x", "y"] and found["category"].tolist() == ["k", ""]
    for text, message in (
        ("path\na", "no column 'label'"),
        ("path,label\na,\n", "line 2: a path and a label"),
        ("path,label\na,1\na,2\n", "line 3: 'a' stands in line 2"),
        ("path,label\n", "no row is of a picture"),
    ):
        (tmp_path / "m.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            listing.of_manifest(tmp_path / "m.csv")
    with pytest.raises(ValueError, match="holds no pictures"):
        listing.of_folder(tmp_path)
    with pytest.raises(ValueError, match="there is no such folder or picture"):
        listing.of_folder(tmp_path / "none")
    open(os.fsencode(tmp_path / "odd") + b"\xff.jpg", "wb").close()
    with pytest.raises(ValueError, match=r"'odd.udcff\.jpg' is no UTF-8 name; rename it"):
        listing.of_folder(tmp_path)


KINDS = ["RGB.jpg", "L.jpg", "RGBA.png", "LA.png", "P.png", "I;16.png"]
KINDS += ["RGBA.webp"] * hasattr(tf.raw_ops, "DecodeWebP")


@pytest.mark.parametrize(
    "kind, channels", [*itertools.product(KINDS, [1, 3]), ("CMYK.jpg", 3)]
)  # TensorFlow decodes no CMYK to grey
def test_pictures_are_those_that_training_sees(tmp_path, kind, channels):
    """Of every kind, also where a large one is reduced: to some grey levels of JPEG's rounding."""
    from metriclearn.datasets import images

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
            expected = images.decode(tf.constant(path.read_bytes()), channels=channels, least=size)
            expected = session.run(expected[0]).astype(int)
            found = listing._decoded(path, size, channels)
            assert found.shape == expected.shape == (70 // (70 // size[0]), *found.shape[1:])
            assert np.abs(found - expected).max() <= (8 if suffix == "jpg" else 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_the_camera_was(tmp_path, orientation):
    exif, path = Image.Exif(), tmp_path / "a.png"
    exif[ExifTags.Base.Orientation] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7), np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    for found in (listing._decoded(path, (9, 7), 1), page.pictures_at({"a": path})["a"]):
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
    assert listing._decoded(path, (20, 20), 1).shape == (40, 20, 1)


def test_bad_pictures_by_policy(pictures, mean, tmp_path, capsys):
    columns = listing.of_folder(pictures)
    with pytest.raises(ValueError, match=r"^cannot read the picture '.*b/5\.jpg': "):
        embed.embed_pictures(columns, tmp_path / "error", saved_model=mean)
    manifest = embed.embed_pictures(
        columns, tmp_path / "skip", saved_model=mean, on_bad_image="skip", pixel_range=(0, 1),
        batch_size=2,
    )  # fmt: skip
    capsys.readouterr()
    again = {"saved_model": mean, "on_bad_image": "skip", "pixel_range": (0, 1), "batch_size": 2}
    assert embed.embed_pictures(columns, tmp_path / "skip", **again)["count"] == 4
    assert "complete since an earlier run" in capsys.readouterr().err
    found = store.read(tmp_path / "skip")
    assert found.ids.tolist() == ["4.png", "a/1.png", "a/2.jpg", "b/c/3.png"]
    assert [os.path.basename(path) for path, _ in manifest["left_out"]] == ["5.jpg"]
    colors = np.array([120, 10, 50, 90])[:, None] * [1, 1, 2] / 255
    np.testing.assert_allclose(found.embeddings, colors * [1, 2, 3], atol=0.03)
    assert all(map(os.path.isfile, found.paths))


def test_another_photo_of_the_same_name_is_not_taken_for_the_old_one(mean, tmp_path):
    columns = {name: np.array([str(tmp_path / "photo.png")]) for name in store.COLUMNS}
    for colour in (10, 200):
        Image.new("RGB", (40, 20), (colour, 0, 0)).save(tmp_path / "photo.png")
        if colour == 10:
            embed.embed_pictures(columns, tmp_path / "s", saved_model=mean)
    with pytest.raises(ValueError, match="holds embeddings of other pictures: name another folder"):
        embed.embed_pictures(columns, tmp_path / "s", saved_model=mean)


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_killed_pass_over_files_goes_on(pictures, mean, tmp_path, monkeypatch, policy):
    columns = listing.of_folder(pictures)
    if policy == "error":
        good = columns["id"] != "b/5.jpg"
        columns = {name: values[good] for name, values in columns.items()}
    arguments = {"saved_model": mean, "on_bad_image": policy, "batch_size": 1, "shard_rows": 1}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = embed.embed_pictures(columns, whole, **arguments)
    append, decoded, read = store.append, listing._decoded, []

    def killed(folder, manifest, part, batches):
        if len(manifest["shards"]) == 2:
            (folder / ".half.tmp").write_bytes(b"written by one that was killed")
            raise KeyboardInterrupt
        append(folder, manifest, part, batches)

    def noted(path, size, channels):
        read.append(os.path.basename(path))
        return decoded(path, size, channels)

    with monkeypatch.context() as patch:
        patch.setattr(store, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            embed.embed_pictures(columns, broken, **arguments)
    with pytest.raises(ValueError, match="of another batch_size"):
        embed.embed_pictures(columns, broken, **arguments | {"batch_size": 2})
    monkeypatch.setattr(listing, "_decoded", noted)
    assert embed.embed_pictures(columns, broken, **arguments) == expected
    assert not (broken / ".half.tmp").exists()
    if policy == "error":  # what is embedded is not even read
        assert sorted(read) == ["2.jpg", "3.png"]
    a, b = store.read(whole), store.read(broken)
    np.testing.assert_array_equal(a.embeddings, b.embeddings)
    assert a.ids.tolist() == b.ids.tolist()


def test_the_size_is_the_signatures_or_asked_for(pictures, mean, tmp_path):
    import tensorflow as tf

    columns = listing.of_folder(pictures / "a")
    with pytest.raises(ValueError, match="takes 8 x 16 only"):
        embed.embed_pictures(columns, tmp_path / "s", saved_model=mean, image_size=(9, 9))

    class Sides(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
        def serve(self, picture):
            sides = tf.cast(tf.shape(picture)[1:3], tf.float32)
            return {"out": tf.tile(sides[None], [tf.shape(picture)[0], 1])}

    module, folder = Sides(), str(tmp_path / "sides")
    tf.saved_model.save(module, folder, signatures=module.serve)
    with pytest.raises(ValueError, match="takes any size; say which"):
        embed.embed_pictures(columns, tmp_path / "s", saved_model=folder)
    embed.embed_pictures(columns, tmp_path / "s", saved_model=folder, image_size=(5, 7))
    assert store.read(tmp_path / "s").embeddings.tolist() == [[5, 7], [5, 7]]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"saved_model": "m"}, "--checkpoint and --saved_model: give one of them"),
        ({"image_size": ["64"]}, "--image_size: goes with --saved_model"),
        ({"pixel_range": ["0", "1"]}, "--pixel_range: goes with --saved_model"),
    ],
)
def test_what_would_be_passed_over_is_refused(pictures, tmp_path, monkeypatch, asked, said):
    class Options(types.SimpleNamespace):
        def __getitem__(self, name):
            return types.SimpleNamespace(present=name in asked)

    given = {"output": f"{tmp_path}/s", "checkpoint": "c", "saved_model": None, "manifest": None}
    options = Options(**given | {"folder": str(pictures)} | asked)
    monkeypatch.setattr(embed.flags, "FLAGS", options)
    monkeypatch.setattr(experiment, "locate", lambda *arguments: ("", "c"))
    with pytest.raises(config.UserError, match=said):
        embed.main(None, (), [])


def test_the_command_line_needs_no_model(pictures, mean, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "retrieval.embed", f"--saved_model={mean}"),
            *(f"--manifest={pictures}/shop.csv", "--where=role=catalogue"),
            f"--output={tmp_path}/s",
        ],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 x 3 float32" in done.stdout
    manifest = json.loads((tmp_path / "s/manifest.json").read_text())
    assert manifest["source"]["preprocessing"] == "8 x 16 x 3, bilinear, 0 to 255"
