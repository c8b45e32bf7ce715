"""Names of OpenCLIP and timm, as Hugging Face's; the values' place is tested by `test_kerashub`."""

import json
import pathlib
import sys

import numpy as np

from models.backbones import weight_maps

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import published

ORACLE = json.loads(published.PATH.read_text())


def tensors(family):
    shapes = ORACLE[family]["shapes"]
    return {name: published.value(name, shape) for name, shape in shapes.items()}


def test_dinov2_of_timm_has_hugging_faces_names_and_shapes():
    expected = ORACLE["dinov2"]["shapes"]
    found = weight_maps.of_timm_dinov2(tensors("timm_dinov2"))
    assert set(expected) - set(found) == {"embeddings.mask_token"}
    for name, value in found.items():
        if ".mlp." not in name:  # these two differ in width there
            assert list(np.shape(value)) == expected[name], name


def test_positions_without_one_of_the_class_token_get_zeros():
    found = weight_maps.of_timm_dinov2(tensors("timm_dinov2_registers"))
    table = found["embeddings.position_embeddings"]
    assert table.shape == (1, 37, 32) and not table[:, 0].any() and table[:, 1:].all()


def test_siglip_of_open_clip_has_hugging_faces_names():
    found = set(weight_maps.of_open_clip(tensors("open_clip_siglip")))
    names = {n for n in ORACLE["siglip"]["shapes"] if n.startswith("vision_model.")}
    assert {n for n in names if ".layers.1." not in n} == found


def test_wrappers_are_taken_off_when_all_names_have_one():
    inner = {"a.weight": 1, "b": 2}
    for prefix in ("state_dict.", "model.", "teacher.backbone.", "module.model."):
        assert weight_maps.unwrap({prefix + name: v for name, v in inner.items()}) == inner
    mixed = {"model.a": 1, "b": 2}
    assert weight_maps.unwrap(mixed) == mixed


def test_heads_of_siglips_sizes():
    """As timm's vision_transformer.py has them: B, L, so400m, giant."""
    assert [weight_maps.heads_of(n) for n in (768, 1024, 1152, 1536)] == [12, 16, 16, 16]
