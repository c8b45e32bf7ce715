"""What a SavedModel wants: signature, output, image size and pixel range, decided in one place."""

import json
import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

from models.backbones import saved_model
from retrieval.embeddings.embedder import Embedder

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import savedmodels

pytestmark = pytest.mark.numeric

v1 = tf.compat.v1
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A SavedModel of floats that gives the mean color, for images of 6 x 6."""
    path = str(tmp_path_factory.mktemp("mean") / "net")
    savedmodels.write_tf2_signature(path, size=(6, 6), dtype=tf.float32)
    return path


def embedded(folder, images=IMAGES, **options):
    with Embedder.of_saved_model(folder, **options) as embedder:
        return embedder.embed(images)


EXPECTED = {
    "0,1": lambda x: x / 255,
    "-1,1": lambda x: x / 127.5 - 1,
    "0,255": lambda x: x,
    "imagenet": lambda x: (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
    "caffe": lambda x: x[..., ::-1] - [103.939, 116.779, 123.68],
}


@pytest.mark.parametrize("name", saved_model.RANGES)
def test_pixels_are_scaled_as_asked(folder, name):
    expected = 2 * EXPECTED[name](IMAGES.astype(np.float64)).mean((1, 2))
    np.testing.assert_allclose(embedded(folder, input_range=name), expected, rtol=1e-4, atol=1e-4)


def test_a_range_that_nothing_says_is_never_guessed(folder):
    with pytest.raises(ValueError, match="pixel range.*0,1  -1,1  0,255  imagenet  caffe"):
        saved_model.read(folder)
    with pytest.raises(ValueError, match="input range '0,2' is not one of 0,1 -1,1"):
        saved_model.read(folder, "0,2")


def test_uint8_takes_pixels_as_they_are(tmp_path):
    savedmodels.write_tf2_signature(str(tmp_path / "net"), size=(6, 6), dtype=tf.uint8)
    expected = 2 * IMAGES.astype(np.float64).mean((1, 2))
    np.testing.assert_allclose(embedded(str(tmp_path / "net")), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="takes uint8 pixels unchanged, not -1,1"):
        saved_model.read(str(tmp_path / "net"), "-1,1")


def test_our_own_note_says_the_range(tmp_path):
    net = tmp_path / "net"
    savedmodels.write_tf2_signature(str(net), size=(6, 6), dtype=tf.float32)
    (net / "assets.extra").mkdir(exist_ok=True)
    (net / "assets.extra/prototrain.json").write_text(json.dumps({"input_range": [-1, 1]}))
    assert saved_model.read(str(net)).input_range == "-1,1"
    with pytest.raises(ValueError, match="takes -1,1 by its prototrain.json, not 0,255"):
        saved_model.read(str(net), "0,255")


def test_a_module_of_tensorflow_hub_takes_0_to_1(tmp_path):
    savedmodels.write_tf1(str(tmp_path / "net"))
    (tmp_path / "net/tfhub_module.pb").write_bytes(b"")
    assert saved_model.read(str(tmp_path / "net")).input_range == "0,1"


def test_sizes(tmp_path, folder):
    with pytest.raises(ValueError, match="--image_size=8,8: .* takes 6 x 6 only"):
        embedded(folder, input_range="0,1", image_size=(8, 8))
    savedmodels.write_tf2(str(tmp_path / "any"))
    with pytest.raises(ValueError, match="takes any size; choose one: --image_size=224"):
        embedded(str(tmp_path / "any"), input_range="0,1")
    found = embedded(str(tmp_path / "any"), input_range="0,1", image_size=(12, 10))
    assert found.shape == (3, 8)


def test_a_keras_export_is_read_once(tmp_path):
    """Keras writes each variable twice; graph, checkpoint and gradients have it once."""
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    model.export(str(tmp_path / "net"), verbose=False)
    expected = model(IMAGES.astype(np.float32), training=False).numpy()
    found = embedded(str(tmp_path / "net"), input_range="0,255")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    read = saved_model.read(str(tmp_path / "net"), "0,255")
    with tf.Graph().as_default():
        with v1.variable_scope("net"):
            output = saved_model.apply(read, tf.constant(IMAGES), False)
        variables = v1.global_variables()
        assert len(variables) == 6 and len(v1.trainable_variables()) == 4
        assert None not in v1.gradients(output, v1.trainable_variables())
