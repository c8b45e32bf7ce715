"""Folders of weights: whose they are, what pixels they want, and the revision that was fetched."""

import json

import numpy as np
import pytest

from models.backbones import presets

PIXELS = np.array([[[[0.0, 51.0, 255.0]]]], np.float32)
MEAN, DEVIATION = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
SCALED = (PIXELS / 255 - MEAN) / DEVIATION


def folder(path, **files):
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return str(path)


PROCESSOR = {"image_mean": MEAN, "image_std": DEVIATION, "size": {"height": 30, "width": 20}}


@pytest.mark.parametrize(
    ("files", "kind", "size", "expected"),
    [
        (
            {"config": {"model_type": "vit"}, "preprocessor_config": PROCESSOR},
            *("hf", (30, 20), SCALED),
        ),
        (
            {
                "config": {"model_type": "vit"},
                "preprocessor_config": PROCESSOR
                | {"do_rescale": False, "do_center_crop": True, "crop_size": 24},
            },
            *("hf", (24, 24), (PIXELS - MEAN) / DEVIATION),
        ),
        (
            {
                "config": {"model_type": "vit"},
                "preprocessor_config": {"size": {"shortest_edge": 256}, "do_normalize": False},
            },
            *("hf", None, PIXELS / 255),
        ),
        (
            {
                "config": {
                    "architecture": "resnet18",
                    "pretrained_cfg": {"mean": MEAN, "std": DEVIATION, "input_size": [3, 16, 18]},
                }
            },
            *("timm", (16, 18), SCALED),
        ),
        (
            {
                "open_clip_config": {
                    "model_cfg": {"vision_cfg": {"image_size": 16}},
                    "preprocess_cfg": {"mean": MEAN, "std": DEVIATION},
                },
                "config": {"model_type": "siglip"},
            },
            *("open_clip", (16, 16), SCALED),
        ),
        (
            {
                "config": {"registered_name": "keras_hub>ViTBackbone"},
                "image_converter": {"config": {"image_size": [8, 8], "scale": 2, "offset": 1}},
            },
            *("keras", (8, 8), PIXELS * 2 + 1),
        ),
    ],
)
def test_pixels_are_made_as_the_files_say(tmp_path, files, kind, size, expected):
    path = folder(tmp_path, **files)
    found, config = presets.kind_of(path)
    assert found == kind
    pixels = presets.pixels_of(path, found, config)
    assert pixels.size == size
    np.testing.assert_allclose(pixels.scaled(PIXELS), expected, rtol=1e-5, atol=1e-5)
    assert pixels.words.startswith("x * ")


@pytest.mark.parametrize(
    ("kind", "given", "size", "expected"),
    [
        # SigLIP, CLIP (new and old), DINOv2, DeiT, ConvNeXt (small and large), DETR's kind.
        (
            *("hf", {"size": {"height": 30, "width": 20}, "resample": 3}),
            *((30, 20), ("bicubic", 1, False)),
        ),
        (
            *("hf", {"size": {"shortest_edge": 24}, "do_center_crop": True, "resample": 3,
                     "crop_size": {"height": 24, "width": 24}}),
            *((24, 24), ("bicubic", 1, True)),
        ),
        (
            *("hf", {"size": 24, "do_center_crop": True, "crop_size": 24, "resample": 3}),
            *((24, 24), ("bicubic", 1, True)),
        ),
        (
            *("hf", {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 24}),
            *((24, 24), ("bilinear", 0.75, True)),
        ),
        (
            *("hf", {"size": {"height": 32, "width": 32}, "do_center_crop": True, "crop_size": 24}),
            *((24, 24), ("bilinear", 0.75, False)),
        ),
        (
            *("hf", {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3}),
            *((224, 224), ("bicubic", 0.875, True)),
        ),
        (
            *("hf", {"size": {"shortest_edge": 384}, "crop_pct": 0.875, "resample": 0}),
            *((384, 384), ("nearest", 1, False)),
        ),
        ("hf", {"size": {"shortest_edge": 256}}, None, ("bilinear", 1, False)),
        ("timm", {"input_size": [3, 16, 18]}, (16, 18), ("bicubic", 0.875, True)),
        (
            *("timm", {"input_size": [3, 16, 16], "crop_pct": 0.9, "crop_mode": "squash",
                       "interpolation": "bilinear"}),
            *((16, 16), ("bilinear", 0.9, False)),
        ),
        ("open_clip", {}, (16, 16), ("bicubic", 1, True)),
        (
            *("open_clip", {"resize_mode": "squash", "interpolation": "bicubic", "size": [12, 12]}),
            *((12, 12), ("bicubic", 1, False)),
        ),
        (
            *("timm", {"input_size": [3, 16, 16], "crop_pct": 1.0, "crop_mode": "border",
                       "mean": MEAN}),
            *((16, 16), ("bicubic", 1, False, "+pad=128,102,76")),
        ),
        (
            *("open_clip", {"resize_mode": "longest", "interpolation": "bilinear"}),
            *((16, 16), ("bilinear", 1, False, "+pad=0,0,0")),
        ),
        (
            *("open_clip", {"resize_mode": "longest", "fill_color": 255}),
            *((16, 16), ("bicubic", 1, False, "+pad=255,255,255")),
        ),
    ],
)  # fmt: skip
def test_images_are_resized_as_the_files_say(tmp_path, kind, given, size, expected):
    config = {"pretrained_cfg": given, "preprocess": given, "vision_cfg": {"image_size": 16}}
    path = folder(tmp_path, preprocessor_config=given)
    found = presets.pixels_of(path, kind, config)
    method, share, square, *padding = expected
    method += "+antialias" * (method != "nearest")  # as Pillow does it
    assert found.size == size and found.resizing == ("".join([method, *padding]), share, square)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("timm", {"crop_mode": "fill"}, "crop_mode='fill' is not one of center, squash, border"),
        (
            "open_clip",
            {"resize_mode": "x"},
            "resize_mode='x' is not one of shortest, squash",
        ),
        (
            "hf",
            {"size": {"longest_edge": 24}},
            "size.longest_edge pads .* height and width",
        ),
        ("hf", {"size": 24, "do_pad": True}, "do_pad pads images, which is not supported"),
        ("keras", {"config": {"pad_to_aspect_ratio": True}}, "pad_to_aspect_ratio .* to false"),
    ],
)
def test_another_way_of_resizing_is_refused(tmp_path, kind, given, message):
    config = {"pretrained_cfg": given, "preprocess": given, "vision_cfg": {"image_size": 16}}
    name = "image_converter" if kind == "keras" else "preprocessor_config"
    with pytest.raises(ValueError, match=message):
        presets.pixels_of(folder(tmp_path, **{name: given}), kind, config)


def test_images_of_kerashub_are_resized_as_its_layer_does(tmp_path):
    path = folder(tmp_path, image_converter={"config": {"image_size": [8, 8]}})
    assert presets.pixels_of(path, "keras", {}).resizing == ("bilinear", 1.0, True)
    given = {"image_size": [8, 8], "crop_to_aspect_ratio": False, "interpolation": "bicubic"}
    folder(tmp_path, image_converter={"config": given})
    assert presets.pixels_of(path, "keras", {}).resizing == ("bicubic", 1.0, False)


def test_a_change_of_any_file_changes_the_fingerprint(tmp_path):
    path = folder(tmp_path, config={"model_type": "vit"}, preprocessor_config=PROCESSOR)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = presets.fingerprint(path)
    (tmp_path / "README.md").write_text("nothing")
    assert presets.fingerprint(path) == before
    folder(tmp_path, preprocessor_config=PROCESSOR | {"image_mean": DEVIATION})
    after = presets.fingerprint(path)
    (tmp_path / "model.safetensors").write_bytes(b"weightS")
    found = {before, after, presets.fingerprint(path)}
    (tmp_path / "assets" / "tokenizer").mkdir(parents=True)
    for name in ("spiece.model", "merges.txt", "assets/tokenizer/vocabulary.spm"):
        (tmp_path / name).write_bytes(b"words")
        found.add(presets.fingerprint(path))
    assert len(found) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no config.json, which defines the network"),
        ("{", "config.json: cannot be read"),
        ("version https://git-lfs.github.com/spec/v1", "config.json: it is a Git LFS pointer"),
        ('{"a": 1}', "not a configuration of KerasHub, Hugging Face or timm"),
        ("[1]", "config.json: holds no JSON object"),
        ('{"model_type": 3}', "not a configuration of KerasHub"),
        ('{"model_type": "bert"}', "model_type 'bert' is not one of clip, deit, dinov2"),
        (
            '{"registered_name": "keras_hub>ViTImageClassifier"}',
            "is not a backbone: give the",
        ),
    ],
)
def test_a_folder_whose_network_is_unknown(tmp_path, content, message):
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        presets.kind_of(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("<html>", "it is a web page"),
        ("[]", "holds no JSON object"),
        ('{"image_mean": "x"}', "could not convert string to float"),
        ('{"image_std": [0, 1, 1]}', "pixels are divided by .0.0, 1.0, 1.0.; all must be above 0"),
        ('{"size": {"height": "a", "width": 3}, "do_center_crop": true, "crop_size": 3}', "'a', 3"),
        ('{"size": "a"}', "the size 'a' is no height and width in pixels"),
        ('{"size": [1, 2, 3]}', ".1, 2, 3. is no height and width"),
        ('{"size": 0}', "the size .0, 0. is no height and width"),
    ],
)
def test_preprocessing_that_is_not_understood(tmp_path, content, message):
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(ValueError, match=f"preprocessor_config.json: .*{message}") as caught:
        presets.pixels_of(str(tmp_path), "hf", {})
    assert "\n" not in str(caught.value) and str(caught.value).count(str(tmp_path)) == 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({}, "has no model_cfg with a vision_cfg"),
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "ResNets of OpenCLIP are not"),
    ],
)
def test_networks_of_open_clip_that_are_not_read(tmp_path, model, message):
    with pytest.raises(ValueError, match=message):
        presets.kind_of(folder(tmp_path, open_clip_config={"model_cfg": model}))


@pytest.mark.parametrize("parts", ({}, {"weight_map": {}}, {"weight_map": {"a": "../b"}}, [1]))
def test_an_index_of_weights_that_names_none_beside_it(tmp_path, parts):
    folder(tmp_path, **{"model.safetensors.index": parts})
    with pytest.raises(ValueError, match=r"index.json: (its weight_map|holds no JSON object)"):
        presets.tensors(str(tmp_path))


def test_weights_without_a_word_on_pixels(tmp_path):
    path = folder(tmp_path, config={"model_type": "vit"})
    with pytest.raises(ValueError, match="pixel scaling is not defined; put image_conv"):
        presets.pixels_of(path, *presets.kind_of(path))


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        ("hf", {"model_type": "dinov2"}, (1, True)),
        ("hf", {"model_type": "dinov3_vit", "num_register_tokens": 4}, (5, True)),
        ("hf", {"model_type": "deit"}, (2, True)),
        ("hf", {"model_type": "siglip"}, (0, False)),
        ("hf", {"model_type": "swin"}, (0, False)),
        ("timm", {"architecture": "vit_small_patch14_reg4_dinov2"}, (5, True)),
        ("timm", {"architecture": "resnet50"}, (0, False)),
        ("keras", {"registered_name": "keras_hub>ViTBackbone", "config": {}}, (1, True)),
        (
            "keras",
            {"registered_name": "keras_hub>DINOV2Backbone", "config": {"num_register_tokens": 3}},
            (4, True),
        ),
        ("keras", {"registered_name": "keras_hub>ResNetBackbone", "config": {}}, (0, False)),
    ],
)
def test_tokens_before_those_of_patches(kind, config, expected):
    assert presets.tokens_of(kind, config) == expected


def test_a_revision_is_found_in_the_cache_of_hugging_face(tmp_path, monkeypatch):
    pytest.importorskip("keras_hub", reason="the extra [kerashub] is not installed")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = tmp_path / "models--me--net"
    (root / "refs").mkdir(parents=True)
    for revision in ("main", "v2"):
        (root / "refs" / revision).write_text(commit)
    (root / "snapshots").mkdir()
    folder(root / "snapshots" / commit, config={"model_type": "vit"})
    for preset in ("hf:me/net", "hf:me/net@v2", f"hf:me/net@{commit}"):
        found, source = presets.folder_of(preset)
        assert found == str(root / "snapshots" / commit)
        assert source == f"hf:me/net@{commit}"
    with pytest.raises(ValueError, match="it cannot be downloaded") as caught:
        presets.folder_of("hf:me/other")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="there is no such folder; give one, hf:OWNER"):
        presets.folder_of("no/such")
