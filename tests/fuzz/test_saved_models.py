"""Damaged SavedModels embed as they did or are refused in one line that names the folder."""

import pathlib
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf

from retrieval.embeddings.embedder import Embedder
from trainer import files

sys.path.insert(0, str(pathlib.Path(__file__).parent))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "models"))
import savedmodels
from damage import copy, damage_one, example, numbers, read_or_refused, seeded

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    savedmodels.write_tf2_signature(str(folder / "signature"), size=(6, 6), dtype=tf.float32)
    savedmodels.write_tf2(str(folder / "callable"))
    savedmodels.write_tf1(str(folder / "tf1"))
    shutil.copytree(folder / "signature", folder / "ours")
    names = (
        "saved_model.pb",
        "variables/variables.index",
        "variables/variables.data-00000-of-00001",
    )
    note = {"sha256": {name: files.sha256(folder / "ours" / name) for name in names}}
    (folder / "ours/assets.extra").mkdir()
    files.write_sealed(folder / "ours/assets.extra/prototrain.json", note)
    return folder


def embedded(folder):
    with Embedder.of_saved_model(str(folder), input_range="0,1", image_size=(6, 6)) as embedder:
        return embedder.embed(IMAGES)


@pytest.mark.parametrize("kind", ["ours", "signature", "callable", "tf1"])
def test_damaged_saved_models(good, tmp_path, kind):
    known = embedded(good / kind)
    for number in numbers(0.15):
        with example(kind, number):
            folder = copy(good / kind, tmp_path / kind)
            damage_one(folder, seeded(kind, number))
            found = read_or_refused(lambda f=folder: embedded(f), folder)
            assert found is None or len(found) == 2
            if kind == "ours" and found is not None:
                np.testing.assert_array_equal(found, known)
