"""Damaged image lists, folders, images and weights: read, or refused in one line; never a hang."""

import base64
import contextlib
import csv
import io
import json
import os
import pathlib
import signal
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metriclearn.datasets import (
    ProductTable,
    folder,
    image_files,
    manifest,
    parse_conditions,
    pipeline,
    select_where,
)
from models.backbones import pth

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from damage import FIRST, SECONDS, UNIT, example, mutated, numbers, read_or_refused, seeded

# ---------------------------------------------------------------------------- lists


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    root = tmp_path_factory.mktemp("shop")
    for name in ("a.jpg", "b.png", "c d.jpg", "é.jpg"):
        Image.new("RGB", (8, 6)).save(root / name)
    return root


LISTS = {
    "commas": "path,label,category,split,role,domain,x1,y1,x2,y2,color\n"
    'a.jpg,"shoe, red",shoes,train,train,shop,0,1,3,4,red\nb.png,hat,hats,test,query,,,,,,\n'
    "c d.jpg,hat,hats,catalogue,catalogue,shop,1,1,2,2,é\n",
    "semicolons": "path;label;split\n a.jpg ; x ;train\n\n;;\nb.png;y;val\né.jpg;z;test\n",
    "tabs": "path\tlabel\na.jpg\tx\nb.png\ty\nc d.jpg\tz\n",
    "mark": "\ufeffpath,label\r\na.jpg,x\r\nb.png,y\r\né.jpg,z\r\n",
}


@pytest.mark.parametrize("kind", LISTS)
def test_manifests(shop, kind):
    path = shop / "manifest.csv"
    for number in numbers(3):
        with example(f"manifest {kind}", number):
            path.write_bytes(mutated(LISTS[kind].encode(), seeded(f"manifest {kind}", number)))
            table = read_or_refused(lambda: manifest.load(path), str(path))
            assert table is None or all(map(os.path.isfile, table.paths))


CELLS = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["a.jpg", "./b.png", "path", "label", "split", "train", "x1", "", " ", "-1", "..", "\0"]
)


@settings(max_examples=UNIT)
@given(
    st.lists(st.lists(CELLS, max_size=6), max_size=5),
    st.sampled_from(",;\t"),
    st.text(max_size=20) | st.sampled_from(["", "path=a.jpg", "label=split,path=path"]),
)
def test_manifests_of_any_cells(shop, rows, separator, columns):
    path = shop / "cells.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator).writerows([["path", "label"], *rows][len(rows) % 2 :])
    with contextlib.suppress(ValueError):
        manifest.load(path, columns=columns)


@settings(max_examples=UNIT)
@given(st.text() | st.text(st.sampled_from("ab=|,\\ ")))
def test_conditions(text):
    table = ProductTable(products=["a", "b"], ids=["1", "2"], extra={"a": ["a", "b"]})
    try:
        conditions = parse_conditions(text)
    except ValueError as error:
        assert str(error)
        return
    with contextlib.suppress(ValueError):
        found = select_where(table, text)
        assert len(found) == 2 or conditions


def test_folders(tmp_path):
    names = [
        b"a",
        b"train",
        b"Test",
        b"val",
        b".hid",
        b"\xff\xfe",
        "é".encode(),
        b"x.jpg",
        b"y.PNG",
    ]
    for number in numbers():
        random = seeded("folder", number)
        root = os.fsencode(tmp_path / str(number))
        os.mkdir(root)
        places = [root]
        for _ in range(random.integers(0, 12)):
            path = os.path.join(
                places[random.integers(len(places))], names[random.integers(len(names))]
            )
            if os.path.lexists(path):
                continue
            kind = random.integers(6)
            if kind < 2:
                os.mkdir(path)
                places.append(path)
            elif kind == 2:
                os.symlink(places[random.integers(len(places))], path)
            elif kind == 3:
                os.mkfifo(path)
            else:
                open(path, "wb").close()
        with example("folder", number):
            table = read_or_refused(lambda r=root: folder.load(os.fsdecode(r)), str(tmp_path))
            assert table is None or all(map(os.path.isfile, table.paths))


# ---------------------------------------------------------------------------- images


def encoded(kind, mode="RGB", **options):
    pixels = np.random.default_rng(3).integers(0, 256, (12, 16, 4), np.uint8)
    image = Image.fromarray(pixels, "RGBA" if mode == "RGBA" else "RGBa").convert("RGBA")
    data = io.BytesIO()
    image.convert(mode).save(data, kind, **options)
    return data.getvalue()


def exif():
    notes = Image.Exif()
    notes[0x0112] = 6
    return notes


IMAGES = {
    "jpeg": lambda: encoded("JPEG"),
    "turned": lambda: encoded("JPEG", exif=exif()),
    "progressive": lambda: encoded("JPEG", progressive=True),
    "cmyk": lambda: encoded("JPEG", "CMYK"),
    "png": lambda: encoded("PNG", "RGBA"),
    "palette": lambda: encoded("PNG", "P"),
    "deep": lambda: _deep(),
    "gif": lambda: encoded("GIF", "P"),
    "bmp": lambda: encoded("BMP"),
    "webp": lambda: encoded("WEBP", "RGBA"),
    "tiff": lambda: encoded("TIFF", compression="tiff_lzw"),
    "animation": lambda: _animation(),
}


def _deep():
    data = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint16).reshape(12, 16) * 300).save(data, "PNG")
    return data.getvalue()


def _animation():
    data = io.BytesIO()
    frames = [Image.new("RGB", (16, 12), color) for color in ("red", "green", "blue")]
    frames[0].save(data, "WEBP", save_all=True, append_images=frames[1:])
    return data.getvalue()


@pytest.mark.parametrize("kind", IMAGES)
def test_images(tmp_path, kind):
    good = IMAGES[kind]()
    assert image_files.read(good)[0].shape in ((12, 16, 3), (16, 12, 3))
    path, limit = tmp_path / "image", 1 << 16
    for number in numbers(2):
        data = mutated(good, seeded(kind, number))
        path.write_bytes(data)
        least = (4, 4) if number % 2 else None
        for source in (data, str(path)):
            with example(kind, number):
                try:
                    pixels, ratio, box = image_files.read(source, 3, least, None, limit)
                except ValueError as error:
                    assert str(error) and len(str(error).splitlines()) == 1, error
                else:
                    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
                    assert pixels.size <= 3 * limit and ratio in (1, 2, 4, 8)


def test_images_in_batches(tmp_path):
    paths = []
    for number in numbers(0.5):
        kind = list(IMAGES)[number % len(IMAGES)]
        paths.append(str(tmp_path / f"{number}.jpg"))
        pathlib.Path(paths[-1]).write_bytes(mutated(IMAGES[kind](), seeded(kind, number)))
    table = ProductTable(products=["p"] * len(paths), paths=paths)
    with example("batches", FIRST), warnings.catch_warnings():
        signal.alarm(SECONDS + UNIT // 20)
        bad = pipeline.unreadable_images(table, max_pixels=1 << 16)
        batches = pipeline.eval_batches(
            table, batch_size=64, image_size=8, on_bad_image="skip", max_pixels=1 << 16
        )
        skipped, found = 0, 0
        for batch in batches.as_numpy_iterator():
            skipped += len(batch["skipped"])
            found += len(batch["image"])
    assert skipped + found == len(paths) and skipped == len(bad)


# ---------------------------------------------------------------------------- weights

FILES = json.loads((pathlib.Path(__file__).parent.parent / "models" / "oracle.json").read_text())


@pytest.mark.parametrize("kind", FILES["files"])
def test_weights(tmp_path, kind):
    path, good = tmp_path / "weights.pth", base64.b64decode(FILES["files"][kind])
    start = good.index(b"\x80\x02")  # the pickle
    for number in numbers(3):
        with example(f"pth {kind}", number):
            head = good[:start] if number % 2 else b""
            path.write_bytes(head + mutated(good[len(head) :], seeded(f"pth {kind}", number)))
            found = read_or_refused(lambda: pth.load(path), str(path))
            assert found is None or sum(a.nbytes for a in found.values()) <= 4 * len(good) + 4096
