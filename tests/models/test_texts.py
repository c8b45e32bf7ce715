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


VOCABULARY = [
    *("<unk>", "<pad>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "d</w>", "e</w>", "s</w>", "t</w>"),
    *("re", "red</w>", "dr", "dre", "ss</w>", "<|startoftext|>", "<|endoftext|>"),
]
MERGES = ["#version: 0.2", "r e", "re d</w>", "d r", "dr e", "s s</w>"]


def with_vocabulary(folder):
    """Adds CLIP's vocabulary files."""
    ids = {token: n for n, token in enumerate(VOCABULARY)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("\n".join(MERGES))
    return folder


def test_it_is_exported_with_its_vocabulary(tmp_path):
    from retrieval.embeddings.texts import TextEmbedder

    folder = with_vocabulary(published.folder(tmp_path / "clip", ORACLE["clip"]))
    tower(folder).save(str(tmp_path / "model" / "text"))
    with TextEmbedder.load(tmp_path / "model") as embedder:
        found = embedder.embed(["Red  dress", "red"] * 40)
    ids = np.full((2, 8), 39)
    ids[0, :6] = [38, 34, 6, 33, 37, 39]
    ids[1, :3] = [38, 34, 39]
    near(found[:2], vectors(tower(folder), ids))
    assert found.shape == (80, 20) and (found[78:] == found[:2]).all()
