"""The losses in Keras: compiled, saved, with weights, with live recall."""

import json
import os
import pathlib
import re
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import metriclearn
from metriclearn import LOSSES, PROXY_LOSSES
from metriclearn.keras import Loss, MarginLoss, MemoryLoss, ProxyLoss, RecallAtK

pytestmark = pytest.mark.numeric
LABELS = np.arange(16) % 4
INPUTS = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)


def network(outputs=3, **options):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(outputs, **options)])


def fit(model, loss, labels=LABELS, **options):
    model.compile("sgd", loss)
    return model.fit(INPUTS, labels, batch_size=16, shuffle=False, verbose=0, **options).history


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_compiles_as_it_is(name):
    """Keras hands over float32 labels [B, 1]; through `Loss`, integers of any size."""
    embeddings = tf.constant(INPUTS[:, :3])
    wanted = LOSSES[name](LABELS, embeddings)
    labels = tf.constant(LABELS[:, None])
    model = network()
    for loss, given in (LOSSES[name], labels), (Loss(name), labels + 2**53):
        model.compile("sgd", loss)
        got = model.compute_loss(y=given, y_pred=embeddings)
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("loss", [metriclearn.triplet_loss, Loss("histogram")])
@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("mixed_float16", marks=pytest.mark.bfloat16)]
)
def test_fit_lowers_the_loss(loss, dtype):
    losses = fit(network(dtype=dtype), loss, epochs=8)["loss"]
    assert losses[-1] < losses[0]


def test_a_saved_loss_is_the_same_again(tmp_path):
    terms = [["triplet", 1.0, {"margin": 0.3, "miner": "semi_hard"}], ["nt_xent", 0.5]]
    for loss in (
        Loss("triplet", margin=0.3, miner=["top_k_hard", {"k": 2}]),
        Loss(terms, name="both"),
    ):
        model = network()
        fit(model, loss)
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
        assert again.loss.name == loss.name and again.loss.get_config() == loss.get_config()
        figures = [m.evaluate(INPUTS, LABELS, batch_size=16, verbose=0) for m in (model, again)]
        np.testing.assert_allclose(figures[1], figures[0], rtol=1e-6)
    e = model.predict(INPUTS, verbose=0)
    parts = metriclearn.triplet_loss(LABELS, e, margin=0.3, miner="semi_hard")
    np.testing.assert_allclose(
        figures[0], parts + 0.5 * metriclearn.nt_xent_loss(LABELS, e), rtol=1e-5
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": 9}, r"newer metriclearn \(format 9 of Loss; this one reads up to 1\)"),
        ({"loss": "tripel"}, r"another version of metriclearn\? unknown loss 'tripel' \(did you"),
        ({"marginn": 0.3}, r"another version .* no option 'marginn' \(did you mean 'margin'\?\)"),
    ],
)
def test_a_file_of_another_version_is_refused_in_one_line(tmp_path, change, message):
    model = network()
    model.compile("sgd", Loss("triplet"))
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        parts = {name: file.read(name) for name in file.namelist()}
    config = json.loads(parts["config.json"])
    config["compile_config"]["loss"]["config"] |= change
    parts["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(tmp_path / "changed.keras", "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)
    with pytest.raises(ValueError, match=message) as raised:
        keras.saving.load_model(tmp_path / "changed.keras")
    assert len(str(raised.value).splitlines()) == 1


# ---------------------------------------------------------------------------- losses with weights


class Trained(keras.Model):
    """A model whose loss is a layer, the way Keras documents for `compute_loss`."""

    def __init__(self, loss):
        super().__init__()
        self.embed, self.metric = keras.layers.Dense(3), loss

    def call(self, inputs):
        return self.embed(inputs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return self.metric(y, y_pred, training=training) if training else self.metric(y, y_pred)


LAYERS = {
    "sub_center_arcface": lambda **o: ProxyLoss(
        "sub_center_arcface", classes=4, centers=2, scale=8.0, **o
    ),
    "margin": lambda **o: MarginLoss(classes=4, miner="batch_hard", **o),
    "memory": lambda **o: MemoryLoss("contrastive", size=32, **o),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_the_loss_of_a_functional_model(name, tmp_path):
    """It trains its own weights, is saved with them, and the embeddings pass through it."""
    inputs, labels = keras.Input((6,)), keras.Input((), dtype="int64")
    embeddings = keras.layers.Dense(3)(inputs)
    layer = LAYERS[name](output="embeddings")
    model = keras.Model([inputs, labels], layer(labels, embeddings))
    before = [w.numpy().copy() for w in layer.weights]
    model.compile("sgd")
    data = [INPUTS, LABELS]
    history = model.fit(data, epochs=4, batch_size=16, shuffle=False, verbose=0).history["loss"]
    if name != "memory":  # which compares with ever more
        assert history[-1] < history[0]
    assert all((w.numpy() != old).any() for w, old in zip(layer.weights, before, strict=True))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for one, other in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(again.predict(data, verbose=0), model.predict(data, verbose=0))
    assert again.layers[-1].get_config() == layer.get_config()


def test_a_layer_is_the_loss_in_compute_loss():
    class Plain(Trained):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return self.metric(y, y_pred)

    model = Plain(ProxyLoss("arcface", classes=4, scale=8.0))
    model.compile("sgd")
    history = model.fit(INPUTS, LABELS, epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0] and len(model.trainable_weights) == 3


def test_a_layers_value_is_that_of_the_function():
    embeddings = tf.constant(INPUTS[:, :3])
    for name in PROXY_LOSSES:
        layer = ProxyLoss(name, classes=4)
        value = layer(LABELS.astype(np.float32)[:, None], embeddings)
        wanted = PROXY_LOSSES[name](LABELS, embeddings, layer.proxies.numpy())
        np.testing.assert_allclose(value, wanted, rtol=1e-6)


def test_a_memory_starts_when_told_and_rests_in_validation():
    x = tf.constant(INPUTS[:, :3])
    layer = MemoryLoss("contrastive", size=32, start=16)
    alone = metriclearn.contrastive_loss(LABELS, x)
    np.testing.assert_allclose(layer(LABELS, x), alone)
    assert int(layer.total.numpy()) == 0
    np.testing.assert_allclose(layer(LABELS, x, training=True), alone)
    remembered = metriclearn.References(
        np.tile(LABELS, 2), np.concatenate([x, 2 * x]), np.arange(16, 32)
    )
    both = sum(
        metriclearn.contrastive_loss(LABELS, 2 * x, references=r) for r in (None, remembered)
    )
    np.testing.assert_allclose(layer(LABELS, 2 * x, training=True), both, rtol=1e-6)


# ---------------------------------------------------------------------------- bad input


def one_line(call, message, kind=ValueError):
    with pytest.raises(kind, match=message) as raised:
        call()
    assert len(str(raised.value).strip().splitlines()) == 1


def test_labels_that_are_none_are_refused():
    for loss in metriclearn.triplet_loss, Loss("triplet"):
        two = np.stack([LABELS, LABELS], axis=1)
        message = r"labels must be a vector \[N\] or a column \[N, 1\], got \(16, 2\)"
        one_line(lambda loss=loss, two=two: fit(network(), loss, two), message)
        # Values are known only when the step runs: TensorFlow names the node, without its stack.
        with pytest.raises(tf.errors.InvalidArgumentError) as raised:
            fit(network(), loss, LABELS + 0.5)
        lines = str(raised.value).splitlines()
        message = (
            "labels given as floats must be whole numbers up to 16777216: pass integers instead"
        )
        assert f"assertion failed: [{message}]" in lines and len(lines) < 8
        assert "labels_must_be_whole_numbers" in lines[2] and "stack traces unavailable" in lines[3]


@pytest.mark.parametrize("loss", [metriclearn.triplet_loss, Loss("triplet", miner="semi_hard")])
def test_a_step_that_xla_compiles_is_the_same(loss):
    """What `jit_compile="auto"` does on a GPU."""
    after = []
    for compiled in False, True:
        model = network()
        model.compile("sgd", loss, jit_compile=compiled)
        history = model.fit(INPUTS, LABELS, batch_size=16, shuffle=False, verbose=0).history
        after.append([history["loss"][0], *model.get_weights()])
    for one, other in zip(*after, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_miner_that_xla_cannot_compile_says_so_in_one_line():
    model = network()
    model.compile("sgd", Loss("triplet", miner="hdc"), jit_compile=True)
    one_line(
        lambda: model.fit(INPUTS, LABELS, verbose=0),
        r"mine_hdc: XLA cannot compile this .*: use model.compile\(..., jit_compile=False\)",
    )


def test_what_a_loss_over_pairs_cannot_honor_is_refused():
    model, weights = network(), np.ones(16)
    model.compile("sgd", Loss("triplet"))
    one_line(
        lambda: model.fit(INPUTS, LABELS, sample_weight=weights, verbose=0),
        "takes no sample_weight",
    )
    one_line(lambda: Loss("triplet", reduction="none"), "no scalar to minimize")
    one_line(lambda: Loss("triplet", margn=1), "did you mean 'margin'")
    one_line(lambda: Loss("arcface"), "unknown loss 'arcface'")
    one_line(lambda: Loss("triplet", miner=len).get_config(), "miner='len' is a function")
    one_line(lambda: MemoryLoss("vicreg"), "loss 'vicreg' has no option 'references'")
    one_line(lambda: RecallAtK((INPUTS, LABELS), every=0), "every=0 .* at least 1")
    nothing = RecallAtK((INPUTS, LABELS), (INPUTS, LABELS + 9), embed=lambda x: x)
    one_line(lambda: nothing.on_epoch_end(0, {}), "no query has its label in the catalogue")
    crooked = RecallAtK((INPUTS, LABELS), embed=lambda x: x[:-1])
    one_line(lambda: crooked.on_epoch_end(0, {}), "a row per label, got .15, 6. for 16 labels")


def test_one_loss_for_several_outputs_is_refused_and_one_each_works():
    inputs = keras.Input((6,))
    outputs = [
        keras.layers.Dense(3, name="embedding")(inputs),
        keras.layers.Dense(4, name="to")(inputs),
    ]
    model = keras.Model(inputs, outputs)
    for loss in metriclearn.triplet_loss, Loss("triplet"):
        one_line(lambda loss=loss: fit(model, loss), "`loss` argument", KeyError)  # Keras's own
    one_line(lambda: Loss("triplet")(LABELS, [INPUTS, INPUTS]), "compile with one loss per output")
    each = {"embedding": Loss("triplet"), "to": "sparse_categorical_crossentropy"}
    history = fit(model, each, {"embedding": LABELS, "to": LABELS})
    assert np.isfinite(history["embedding_loss"][0])


def test_the_guides_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it saves a model
    root = pathlib.Path(__file__).parent.parent.parent
    guide = (root / "docs" / "keras.md").read_text(encoding="utf-8")
    images = np.random.default_rng(0).normal(size=(64, 32, 32, 3)).astype(np.float32)
    labels = np.arange(64) % 10
    names = {"images": images, "labels": labels}
    names |= {"query_images": images[:20], "query_labels": labels[:20]}
    for block in re.findall(r"^```python\n(.*?)^```", guide, re.M | re.S):
        exec(block.replace("steps_per_epoch=10", "steps_per_epoch=2"), names)
    np.testing.assert_allclose(names["again"].loss.get_config()["margin"], 0.2)
    assert names["search"].predict(images[:2], verbose=0).shape == (2, 64)


REPLICAS = """
import numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
import keras, metriclearn
from metriclearn.keras import Loss, ProxyLoss
x, y = np.random.default_rng(0).normal(size=(16, 6)).astype("float32"), np.arange(16) % 4
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    inputs, labels = keras.Input((6,)), keras.Input((), dtype="int64")
    proxies = ProxyLoss("proxy_anchor", classes=4, output="embeddings")
    model = keras.Model([inputs, labels], proxies(labels, keras.layers.Dense(3)(inputs)))
    model.compile("sgd", Loss("triplet", miner="batch_hard"))
e, w = model.predict([x, y], verbose=0), proxies.proxies.numpy()
wanted = [
    metriclearn.triplet_loss(y[h], e[h]) + metriclearn.proxy_anchor_loss(y[h], e[h], w)
    for h in (slice(8), slice(8, 16))
]
got = model.fit([x, y], y, batch_size=16, shuffle=False, verbose=0).history["loss"][0]
print(np.isclose(got, np.mean(wanted), rtol=1e-5))
steps = []
for loss in Loss("triplet"), metriclearn.triplet_loss:
    with strategy.scope():
        layer = keras.layers.Dense(3, kernel_initializer="ones", use_bias=False)
        model = keras.Sequential([keras.Input((6,)), layer])
        layer.kernel.assign(np.random.default_rng(1).normal(size=(6, 3)))
        model.compile("sgd", loss)
    before = layer.kernel.numpy()
    reported = model.fit(x, y, batch_size=16, shuffle=False, verbose=0).history["loss"][0]
    steps.append((layer.kernel.numpy() - before, reported))
# Keras adds the scalars that functions return: N times the step, and N times what it reports.
print(np.allclose(steps[1][0], 2 * steps[0][0], atol=1e-6) and np.abs(steps[0][0]).max() > 1e-3)
print(np.isclose(steps[1][1], 2 * steps[0][1], rtol=1e-5))
"""


def test_replicas_share_the_loss():
    """A process of its own: virtual devices must be made before TensorFlow starts."""
    root = pathlib.Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert done.stdout.split() == ["True"] * 3, done.stderr[-2000:]
