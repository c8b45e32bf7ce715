"""Names of a Keras model's variables, whatever the process made before."""

import keras

from trainer import keras_names


def made():
    x = images = keras.Input((4,))
    x = keras.layers.Dense(3)(x)
    x = keras.layers.Dense(3, name="own name")(x)
    inner = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(3)])
    return keras.Model(images, keras.layers.BatchNormalization()(keras.layers.Dense(3)(inner(x))))


def test_numbers_start_anew_in_each_model_and_layer():
    found = [keras_names.names(model, model.weights) for model in (made(), made())]
    assert found[0] == found[1]
    layers = ["dense", "own_name", "sequential/dense", "sequential/dense_1", "dense_1"]
    expected = [f"{layer}/{kind}" for layer in layers for kind in ("kernel", "bias")]
    norm = [f"batch_normalization/{kind}" for kind in ("gamma", "beta")]
    norm += [f"batch_normalization/moving_{kind}" for kind in ("mean", "variance")]
    assert found[0] == [*expected, *norm]


def test_no_two_variables_have_one_name():
    x = images = keras.Input((4,))
    x = keras.layers.Dense(3, name="a b")(x)
    x = keras.layers.Dense(3, name="a?b")(x)
    model = keras.Model(images, x)
    assert keras_names.names(model, model.weights) == [
        "a_b/kernel", "a_b/bias", "a_b/kernel_1", "a_b/bias_1"
    ]  # fmt: skip
