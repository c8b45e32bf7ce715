"""Damaged SavedModels embed as they did or are refused in one line that names the folder."""

import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

from retrieval.embeddings.embedder import Embedder

sys.path.insert(0, str(pathlib.Path(__file__).parent))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "models"))
import savedmodels
from damage import SEEDS, copy, damage_one

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    savedmodels.write_tf2_signature(str(folder / "signature"), size=(6, 6), dtype=tf.float32)
    savedmodels.write_tf2(str(folder / "callable"))
    savedmodels.write_tf1(str(folder / "tf1"))
    return folder


@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_saved_model(good, tmp_path, seed):
    random = np.random.default_rng(seed)
    kind = ("signature", "callable", "tf1")[seed % 3]
    folder = copy(good / kind, tmp_path / kind)
    damage_one(folder, random)
    size = (6, 6)
    try:
        with Embedder.of_saved_model(str(folder), input_range="0,1", image_size=size) as embedder:
            found = embedder.embed(IMAGES)
        assert found.shape[0] == 2
    except ValueError as error:
        assert str(folder) in str(error) and "\n" not in str(error), error
