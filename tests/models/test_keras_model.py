"""Keras models by address: files, functions, and the networks that come with Keras."""

import json
import sys
import types
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.applications import convnext, resnet
from odd_layers import Constant
from PIL import Image
from starlette import testclient

from models import backbones, ranker
from retrieval.catalogue import index
from retrieval.catalogue.opened import Catalogue
from retrieval.embeddings import passes, store
from retrieval.embeddings.embedder import Embedder
from retrieval.serve import app, limits, metrics, opening, searcher, thumbnails
from trainer import checkpoints, export, loop, towers
from trainer.keras_model import eagerly

pytestmark = pytest.mark.numeric
v1 = tf.compat.v1
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
SESSION = v1.ConfigProto(device_count={"CPU": 2})


def small(inside=True, size=None, dtype="float32"):
    """A convolution and its batch norm, to maps; the pixels' range is inside or unknown."""
    keras.utils.set_random_seed(0)
    x = images = keras.Input((size, size, 3), dtype=dtype)
    if inside:
        x = keras.layers.Rescaling(1 / 127.5, -1)(x)
    x = keras.layers.Conv2D(8, 3, 2, activation="gelu")(x)
    return keras.Model(images, keras.layers.BatchNormalization()(x))


def constant():
    images = keras.Input((None, None, 3), dtype="uint8")
    return keras.Model(images, Constant()(keras.layers.Rescaling(1.0)(images)))


def tiny_convnext():
    """With its preprocessing and drop path; its convolutions are grouped."""
    keras.utils.set_random_seed(0)
    sizes = {"depths": [1, 1, 1, 1], "projection_dims": [8, 8, 16, 16]}
    return convnext.ConvNeXt(
        **sizes, drop_path_rate=0.5, layer_scale_init_value=1.0, weights=None, include_top=False,
        input_shape=(None, None, 3), weights_name="", name="tiny",
    )  # fmt: skip


def tiny_resnet(include_top, weights, input_shape):
    keras.utils.set_random_seed(0)

    def stack(x):
        return resnet.stack_residual_blocks_v1(x, 8, 1, name="conv2")

    return resnet.ResNet(
        stack, False, True, include_top=False, weights=None, input_shape=input_shape, name="tiny"
    )


tiny_resnet.__module__ = "keras.src.applications.resnet"


@pytest.fixture(scope="module", autouse=True)
def user_module():
    """A module of a user's with functions that make models."""
    module = types.ModuleType("user_networks")
    module.small, module.convnext, module.number = small, tiny_convnext, lambda: 3
    module.unknown = lambda: small(inside=False)
    module.pair = lambda: keras.Model(
        [x := keras.Input((8, 8, 3)), y := keras.Input((8, 8, 3))], x + y
    )
    module.broken = lambda: 1 / 0
    module.unbuilt = lambda: keras.Sequential([keras.layers.Dense(2)])
    module.constant = constant
    sys.modules["user_networks"] = module
    yield
    del sys.modules["user_networks"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("keras") / "my-net.keras"
    eagerly(lambda: small().save(path))
    return path


class Built(NamedTuple):
    """Features of IMAGES in training and not, gradients of the former's mean square, names."""

    trained: np.ndarray
    served: np.ndarray
    slopes: list
    names: list


def built(backbone, count=1):
    """Builds a backbone on `count` towers, its batch norm frozen."""

    def build(inputs, train_phase):
        return {"features": backbone.apply(inputs["image"], train_phase, frozen_batch_norm=True)}

    devices = [f"/device:CPU:{i}" for i in range(count)]
    with tf.Graph().as_default(), v1.Session(config=SESSION) as session:
        inputs, step = {"image": tf.constant(IMAGES)}, tf.constant(2, tf.int64)
        parts = towers.replicate(build, inputs, devices, train_phase=True, step=step)
        trained = tf.concat([tower["features"] for tower in parts], 0)
        slopes = v1.gradients(tf.reduce_mean(trained**2), v1.trainable_variables())
        assert None not in slopes
        with v1.variable_scope(v1.get_variable_scope(), reuse=True):
            served = backbone.apply(tf.constant(IMAGES))
        session.run(v1.global_variables_initializer())
        names = [v.op.name for v in backbone.variables()]
        return Built(*session.run([trained, served, slopes]), names)


def test_a_file(path):
    backbone = backbones.load(f"keras:{path}")
    assert backbone.name == "my_net" and len(backbone.fingerprint) == 64
    assert backbone.preprocessing == "RGB 0 to 255, scaled to 0,255; pooling auto"
    _, found, _, names = built(backbone)
    expected = eagerly(lambda: small()(IMAGES.astype(np.float32), training=False).numpy())
    np.testing.assert_allclose(found, expected.mean((1, 2)), atol=1e-5)
    assert "my_net/conv2d/kernel" in names and "my_net/batch_normalization/gamma" in names
    gem = backbones.load(f"keras:{path}", pooling="gem")
    assert gem.preprocessing != backbone.preprocessing
    assert "my_net/pooling/exponent" in built(gem).names


def test_another_file_has_another_fingerprint(path, tmp_path):
    def moved():
        model = small()
        model.layers[2].kernel.assign_add(np.ones(model.layers[2].kernel.shape))
        model.save(tmp_path / "my-net.keras")

    eagerly(moved)
    other = backbones.load(f"keras:{tmp_path / 'my-net.keras'}")
    assert other.fingerprint != backbones.load(f"keras:{path}").fingerprint


@pytest.mark.parametrize("of_keras", (False, True))
def test_a_fingerprint_knows_layers_and_weights(of_keras, tmp_path, monkeypatch):
    """Of functions, and of Keras's own networks with a file of weights."""

    def load(activation="relu", moved=0.0):
        def network(**options):
            keras.utils.set_random_seed(0)
            images = keras.Input((None, None, 3), dtype="uint8")
            x = keras.layers.Rescaling(1 / 255)(images)
            model = keras.Model(images, keras.layers.Conv2D(2, 3, activation=activation)(x))
            model.layers[-1].bias.assign([moved, 0])
            return model

        if not of_keras:
            sys.modules["user_networks"].network = network
            return backbones.load("keras:user_networks:network").fingerprint
        network.__module__ = tiny_resnet.__module__
        monkeypatch.setattr(keras.applications, "ResNet50", network)
        file = tmp_path / "own.weights.h5"
        eagerly(lambda: network().save_weights(file))
        return backbones.load(f"keras:keras.applications:ResNet50,weights={file}").fingerprint

    assert load() == load()
    assert len({load(), load(activation="gelu"), load(moved=0.1)}) == 3


@pytest.mark.parametrize("asked", ("0,1", "caffe"))
def test_a_function_and_a_range_of_pixels(asked):
    backbone = backbones.load("keras:user_networks:unknown", input_range=asked)
    assert backbone.name == "unknown" and backbone.fingerprint
    pixels = IMAGES.astype(np.float32)
    if asked == "caffe":
        pixels = keras.applications.resnet.preprocess_input(pixels)
    else:
        pixels /= 255
    expected = eagerly(lambda: small(False)(pixels, training=False).numpy())
    scale = np.abs(expected).max()
    np.testing.assert_allclose(built(backbone).served, expected.mean((1, 2)), atol=1e-5 * scale)


def test_convnext_trains_on_two_towers_as_on_one():
    """Its grouped convolutions run on any device; drop path drops the same examples."""
    backbone = backbones.load("keras:user_networks:convnext")
    one, two = (built(backbone, count) for count in (1, 2))
    scale = np.abs(one.served).max()
    np.testing.assert_allclose(two.trained, one.trained, rtol=0, atol=1e-5 * scale)
    largest = max(np.abs(slope).max() for slope in one.slopes)
    for a, b in zip(one.slopes, two.slopes, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * largest)
    expected = eagerly(lambda: tiny_convnext()(IMAGES.astype(np.float32), training=False).numpy())
    np.testing.assert_allclose(one.served, expected.mean((1, 2)), rtol=0, atol=1e-5 * scale)
    assert np.abs(one.trained - one.served).max() > 0.01 * scale


def test_low_rank_updates_are_all_that_is_trained():
    def dense():
        model = keras.Sequential([keras.Input((8, 8, 3), dtype="uint8"), keras.layers.Flatten()])
        model.add(keras.layers.Rescaling(1 / 255))
        model.add(keras.layers.Dense(7, activation="relu", name="first"))
        model.add(keras.layers.Dense(5))
        return model

    sys.modules["user_networks"].dense = lambda: [keras.utils.set_random_seed(0), dense()][1]

    def run(lora_rank, moved=0.0):
        backbone = backbones.load("keras:user_networks:dense", lora_rank=lora_rank)
        with tf.Graph().as_default(), v1.Session() as session:
            features = backbone.apply(tf.constant(IMAGES[:, :8, :8]), True)
            trained = v1.trainable_variables()
            slopes = v1.gradients(features, trained)
            assert None not in slopes
            session.run(v1.global_variables_initializer())
            values = {v.op.name: session.run(v) for v in v1.global_variables()}
            for v in trained:
                if v.op.name.endswith("_b"):
                    v.load(np.full(v.shape, moved, np.float32), session)
            return session.run(features), values, {v.op.name for v in trained}

    plain, weights, _ = run(0)
    start, values, trained = run(2)
    ends = ("lora_kernel_a", "lora_kernel_b")
    assert trained == {f"dense/{layer}/{end}" for layer in ("first", "dense") for end in ends}
    np.testing.assert_allclose(start, plain, atol=1e-6)
    found = run(2, 0.1)[0]
    x = IMAGES[:, :8, :8].reshape(4, -1).astype(np.float64) / 255
    for layer in ("first", "dense"):
        a = values[f"dense/{layer}/lora_kernel_a"]
        kernel = weights[f"dense/{layer}/kernel"]
        kernel = kernel + a @ np.full((2, kernel.shape[1]), 0.1)
        x = x @ kernel + weights[f"dense/{layer}/bias"]
        x = np.maximum(x, 0) if layer == "first" else x
    np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5 * np.abs(x).max())


def test_networks_of_keras_take_weights_and_preprocess_as_their_module_says(monkeypatch, tmp_path):
    monkeypatch.setattr(keras.applications, "ResNet50", tiny_resnet)
    file = tmp_path / "own.weights.h5"

    def weights():
        model = tiny_resnet(False, None, (None, None, 3))
        for variable in model.trainable_variables:
            variable.assign_add(0.1 * np.ones(variable.shape))
        model.save_weights(file)
        pixels = keras.applications.resnet.preprocess_input(IMAGES.astype(np.float32))
        return model(pixels, training=False).numpy()

    expected = eagerly(weights)
    backbone = backbones.load(f"keras:keras.applications:ResNet50,weights={file}")
    assert "keras.applications.resnet" in backbone.preprocessing and backbone.fingerprint
    _, found, _, names = built(backbone)
    np.testing.assert_allclose(found, expected.mean((1, 2)), atol=1e-5 * np.abs(expected).max())
    assert "tiny/conv1_conv/kernel" in names
    assert backbones.load("keras:keras.applications:ResNet50").fingerprint == ""


def test_a_ranker_trains_resumes_and_is_used_with_a_keras_model(path, tmp_path):
    """The same vectors from the checkpoint, an export, `embed`, `build`, `search` and `serve`."""
    before = ranker.config.to_dict()
    lines = ["path,label,split"]
    pixels = np.stack([IMAGES[i // 4] // (i % 4 + 1) for i in range(16)])
    for i in range(16):
        Image.fromarray(pixels[i]).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{i // 4},train")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    try:
        ranker.config.update(
            {
                "trainer.experiment_base_dir": str(tmp_path),
                "trainer.experiment_name": "run",
                "trainer.evaluation_interval": 0,
                "trainer.num_towers": 2,
                "model.hub_address": f"keras:{path}",
                "model.default_image_dimensions": [32, 32, 3],
                "model.batch_size": 8,
                "model.num_steps": 1,
                "dataset.name": "manifest",
                "dataset.base_path": str(tmp_path),
                "dataset.validation": False,
            }
        )
        for steps in (1, 2):
            ranker.config["model.num_steps"] = steps
            loop.train(ranker, ranker.config)
        prefix = checkpoints.latest(str(tmp_path / "run" / "checkpoint"))
        names = set(checkpoints.shapes(prefix))
        assert {"my_net/conv2d/kernel", "my_net/batch_normalization/moving_mean"} <= names
        (start, _) = json.loads((tmp_path / "run" / "provenance.json").read_text())
        assert start["sources"]["backbone"] == str(path) and len(start["sources"]["sha256"]) == 64
        expected = of_checkpoint(prefix, pixels)
        export.export(ranker, prefix, str(tmp_path / "served"))
        paths = [str(tmp_path / f"{i}.png") for i in range(16)]
        with Embedder.of_experiment(ranker, prefix, threads=1) as embedder:
            passes.embed_table(ranker.table(), str(tmp_path / "store"), embedder)
            index.build(tmp_path / "store", tmp_path / "index", "Flat", save_model=embedder.save)
        ranker.config["model.default_image_dimensions"] = [24, 20, 3]
        with Embedder.of_experiment(ranker, prefix, threads=1) as embedder:
            smaller = np.stack([embedder.decode(path) for path in paths])
            found = embedder.run({"image": smaller})
            assert smaller.shape == (16, 24, 20, 3)
            same(found, of_checkpoint(prefix, smaller))
    finally:
        ranker.config.update(before)
    served = eagerly(tf.saved_model.load, str(tmp_path / "served"))
    found = eagerly(lambda: served.signatures["serving_default"](tf.constant(pixels)))
    same(found["embeddings"].numpy(), expected)
    stored = store.read(tmp_path / "store")
    by_path = dict(zip(stored.paths.tolist(), stored.embeddings, strict=True))
    same(np.stack([by_path[path] for path in paths]), expected)
    with Catalogue.open(tmp_path / "index") as catalogue, catalogue.embedder(1) as embedder:
        same(embedder.embed(paths), expected)
    figures = metrics.Metrics()
    shelves = opening.shelves([str(tmp_path / "index")], thumbnails.Thumbnails(), figures, 1)
    application = app.create(searcher.Searcher(shelves, limits.Limits(), figures, 2))
    with testclient.TestClient(application, base_url="http://127.0.0.1") as http:
        files = {"image": (tmp_path / "5.png").read_bytes()}
        same(np.array(http.post("/v1/embed", files=files).json()["vector"]), expected[5])
        results = http.post("/v1/search?k=1", files=files).json()["results"]
        assert results[0]["id"] == "5.png" and abs(results[0]["score"] - 1) < 1e-5


def of_checkpoint(prefix, pixels):
    """The ranker's embeddings in the graph that training validates with."""
    with tf.Graph().as_default(), v1.Session() as session:
        model = ranker.build({"image": tf.constant(pixels)})
        checkpoints.restore(session, prefix, v1.global_variables(), averages=True)
        return session.run(model.embeddings)


def same(found, expected):
    """Vectors of length 1, from graphs that are compiled for other batches."""
    np.testing.assert_allclose(found, expected, atol=1e-5)


# ------------------------------------------------------------------------------ bad addresses


def old_format(folder):
    (folder / "net.h5").write_bytes(b"\x89HDF")
    return str(folder / "net.h5")


def pointer(folder):
    (folder / "net.keras").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0")
    return str(folder / "net.keras")


def page(folder):
    (folder / "net.keras").write_text("<!DOCTYPE html><html>")
    return str(folder / "net.keras")


def cut_off(folder):
    eagerly(lambda: small().save(folder / "net.keras"))
    whole = (folder / "net.keras").read_bytes()
    (folder / "net.keras").write_bytes(whole[: len(whole) // 2])
    return str(folder / "net.keras")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (old_format, "Keras's old format: load it with Keras and save it as .keras"),
        (pointer, "Git LFS pointer, not the file itself: run git lfs pull"),
        (page, "it is a web page"),
        (cut_off, "Keras cannot load it: "),
        ("no/such.keras", "cannot be read: No such file"),
        ("nothing", "there is no such file; give FILE.keras, package.module:function"),
        ("user_networks:none", "it fails: AttributeError: module 'user_networks' has no attribute"),
        ("user_networks:broken", "it fails: ZeroDivisionError: division by zero"),
        ("user_networks:number", "it returns a int, not a keras.Model"),
        ("user_networks:pair", "must take images"),
        ("user_networks:unbuilt", "is not built: give it a keras.Input of images"),
        ("user_networks:unknown", "--model.hub_input_range: 0,1"),
        ("keras.applications:ResNet51", "Did you mean 'ResNet50"),
        ("keras.applications:ResNet50,top=1", "the only option is weights=FILE"),
        (
            "keras.applications:ResNet50,weights=no.h5",
            "weights=no.h5' cannot be used: cannot be read: No such file",
        ),
    ],
)
def test_an_address_that_will_not_do(address, message, tmp_path):
    address = address if isinstance(address, str) else address(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        backbones.load(f"keras:{address}")
    assert f"The backbone 'keras:{address}' cannot be used" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_of_another_size_than_the_model_takes(tmp_path):
    sys.modules["user_networks"].fixed = lambda: small(size=16)
    backbone = backbones.load("keras:user_networks:fixed")
    assert backbone.image_size == (16, 16)
    with tf.Graph().as_default(), pytest.raises(ValueError, match="of 16 x 16, not 32 x 32"):
        backbone.apply(tf.constant(IMAGES))


def test_a_layer_with_a_tensor_made_outside_of_the_graph():
    backbone = backbones.load("keras:user_networks:constant")
    with tf.Graph().as_default(), pytest.raises(ValueError, match="keeps a tensor that") as caught:
        backbone.apply(tf.constant(IMAGES))
    assert "user_networks:constant: " in str(caught.value) and "\n" not in str(caught.value)


def test_integers_take_pixels_as_they_are():
    sys.modules["user_networks"].bytes = lambda: small(dtype="uint8")
    backbone = backbones.load("keras:user_networks:bytes")
    assert built(backbone).served.shape == (4, 8)


def test_pooling_and_lora_are_for_keras_models():
    with pytest.raises(ValueError, match="model.pooling=gem is for Keras models"):
        backbones.load("mobilenet", pooling="gem")
    with pytest.raises(ValueError, match="model.lora_rank=2 is for Keras models"):
        backbones.load("mobilenet", lora_rank=2)
