"""Text towers of CLIP, SigLIP and MetaCLIP 2 against PyTorch's in float64, and their export."""

import json
import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import published

from models import backbones
from models.backbones import presets, texts
from trainer.keras_model import eagerly

pytest.importorskip("keras_hub", reason="the extra [kerashub] is not installed")
pytestmark = pytest.mark.numeric
v1 = tf.compat.v1
ORACLE = json.loads(published.PATH.read_text())


def tower(folder):
    return texts.find(str(folder), *presets.kind_of(str(folder)))


def vectors(found, ids):
    made = eagerly(lambda: found.make()(ids).numpy())
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def near(found, expected):
    expected = np.reshape(expected, found.shape)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def ids_of(family):
    config = family["files"]["config.json"]["text_config"]
    return published.token_ids(config["eos_token_id"], config["pad_token_id"])


@pytest.mark.parametrize("name", ("clip", "siglip", "metaclip_2"))
def test_vectors_and_scores_equal_pytorch(name, tmp_path):
    family = ORACLE[name]
    folder, size = published.folder(tmp_path / name, family), family["cases"][0]["size"]
    found = vectors(tower(folder), ids_of(family))
    near(found, family["texts"]["vectors"])
    backbone = backbones.load(f"kerashub:{folder}")
    with tf.Graph().as_default(), v1.Session() as session:
        features = tf.nn.l2_normalize(backbone.apply(tf.constant(published.images(size))), axis=1)
        session.run(v1.global_variables_initializer())
        of_images = session.run(features)
    near(found @ of_images.T, family["texts"]["scores"])
    assert backbone.texts is not None
