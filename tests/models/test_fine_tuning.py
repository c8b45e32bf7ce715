"""Fine-tuning of vision transformers: drop path, low-rank updates, and the preset for it."""

import contextlib
import pathlib
import re
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import in_process

from models import backbones, ranker
from models.backbones import fine_tuning
from trainer import checkpoints, export, towers
from trainer.keras_model import eagerly

pytestmark = pytest.mark.numeric
v1 = tf.compat.v1
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
BLOCKS = 3


class Attention(keras.layers.Layer):
    """The least that mixes tokens: a softmax of their products."""

    def build(self, shape):
        self.value = keras.layers.Dense(shape[-1], name="value")
        self.value.build(shape)

    def call(self, x):
        scores = keras.ops.matmul(x, keras.ops.swapaxes(x, 1, 2))
        return keras.ops.matmul(keras.ops.softmax(scores), self.value(x))


class Residual(keras.layers.Layer):
    """A transformer's block, without drop path."""

    def build(self, shape):
        self.attention = Attention(name="attention")
        self.mlp = keras.layers.Dense(shape[-1], activation="gelu", name="mlp")
        self.attention.build(shape)
        self.mlp.build(shape)

    def call(self, x):
        x = x + self.attention(x)
        return x + self.mlp(x)


def transformer():
    """A tiny random vision transformer: 4 patches of 8 dimensions, three blocks."""
    keras.utils.set_random_seed(0)
    x = images = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1)(x)
    x = keras.layers.Conv2D(8, 4, 4, name="patch_embedding")(x)
    x = keras.layers.Reshape((4, 8))(x)
    for i in range(BLOCKS):
        x = Residual(name=f"block_{i}")(x)
    return keras.Model(images, keras.layers.LayerNormalization(name="norm")(x))


@pytest.fixture(scope="module", autouse=True)
def user_module():
    module = types.ModuleType("user_transformers")
    images = keras.Input((8, 8, 3), dtype="uint8")
    module.vit, module.plain = transformer, lambda: keras.Model(images, keras.layers.ReLU()(images))
    sys.modules["user_transformers"] = module
    yield
    del sys.modules["user_transformers"]


# ---------------------------------------------------------------------------- drop path


def features(backbone, count, images, step=0):
    """Features of `count` training towers, joined."""

    def build(inputs, train_phase):
        return {"features": backbone.apply(inputs["image"], train_phase)}

    devices = [f"/device:CPU:{i}" for i in range(count)]
    sessions = v1.ConfigProto(device_count={"CPU": 2})
    with tf.Graph().as_default(), v1.Session(config=sessions) as session:
        inputs, step = {"image": tf.constant(images)}, tf.constant(step, tf.int64)
        parts = towers.replicate(build, inputs, devices, train_phase=True, step=step)
        joined = tf.concat([part["features"] for part in parts], 0)
        with v1.variable_scope(v1.get_variable_scope(), reuse=True):
            served = backbone.apply(inputs["image"])
        session.run(v1.global_variables_initializer())
        return session.run([joined, served])


def test_blocks_are_skipped_by_example_step_and_place():
    """Of one image in many examples, each has the features of one set of blocks that it skips."""
    rate, count = 0.5, 64
    images = np.repeat(IMAGES[:1], count, 0)
    backbone = backbones.load("keras:user_transformers:vit", drop_path=rate)
    (one, served), (two, _) = (features(backbone, towers, images) for towers in (1, 2))
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-5 * np.abs(one).max())
    later, _ = features(backbone, 1, images, step=1)
    assert np.abs(later - one).max() > 1e-3
    plain, _ = features(backbones.load("keras:user_transformers:vit"), 1, images)
    np.testing.assert_allclose(served, plain, atol=1e-6)

    def expected():
        model = transformer()
        reshaped = next(x for x in model.layers if isinstance(x, keras.layers.Reshape))
        start = keras.Model(model.inputs[0], reshaped.output)(images[:1].astype(np.float32))
        found = {}
        for kept in np.ndindex(2, 2):  # of the last two blocks; the first is never skipped
            x = start
            for i, (rate_i, keep) in enumerate(zip((0, rate / 2, rate), (1, *kept), strict=True)):
                y = model.get_layer(f"block_{i}")(x)
                x = x + keep * (y - x) / (1 - rate_i)
            found[kept] = model.get_layer("norm")(x).numpy().mean(1)[0]
        return found

    found = eagerly(expected)
    nearest = [min(found, key=lambda kept: np.abs(found[kept] - row).max()) for row in one]
    for kept, row in zip(nearest, one, strict=True):
        np.testing.assert_allclose(row, found[kept], atol=1e-5)
    kept = np.mean(nearest, 0)
    expected_share = 1 - np.array([rate / 2, rate])
    deviation = np.sqrt(expected_share * (1 - expected_share) / count)
    assert (np.abs(kept - expected_share) < 5 * deviation).all()


def test_drop_path_that_a_network_has_gets_the_rate():
    def rates():
        images = keras.Input((8, 8, 3))
        x = images
        for i in range(3):
            y = keras.layers.Dropout(0.1 * i, noise_shape=(None, 1, 1, 1))(x)
            x = keras.layers.Dropout(0.7)(x + y)
        model = keras.Model(images, x)
        fine_tuning.adapt(model, drop_path=0.4)
        fine_tuning.adapt(model, drop_path=0.8)  # only once
        return [x.rate for x in model.layers if isinstance(x, keras.layers.Dropout)]

    np.testing.assert_allclose(eagerly(rates), [0, 0.7, 0.2, 0.7, 0.4, 0.7])


@pytest.mark.parametrize(
    ("address", "options", "message"),
    [
        ("keras:user_transformers:plain", {"drop_path": 0.1}, "model.drop_path: it has neither"),
        ("resnet18", {"drop_path": 0.1}, "model.drop_path=0.1 is for Keras models; give 0"),
        ("resnet18", {"lora_rank": 2}, "model.lora_rank=2 is for Keras models; give 0"),
    ],
)
def test_a_network_without_such_layers(address, options, message):
    with tf.Graph().as_default(), pytest.raises(ValueError, match=message) as caught:
        backbones.load(address, **options).apply(tf.constant(IMAGES), True)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------- training


@pytest.fixture
def trained(tmp_path):
    """function(flags): trains the ranker on 16 images, then returns ({step: {name: value}}, the
    last checkpoint)."""
    lines = ["path,label,split"]
    for i in range(16):
        Image.fromarray(IMAGES[i // 4] // (i % 4 + 1)).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{i // 4},train")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    with contextlib.ExitStack() as until_the_end:

        def run(*given):
            always = (
                *("--model.hub_address=keras:user_transformers:vit", "--dataset.name=manifest"),
                *(f"--dataset.base_path={tmp_path}", "--nodataset.validation"),
                *(f"--trainer.experiment_base_dir={tmp_path}", "--trainer.evaluation_interval=0"),
                *("--model.default_image_dimensions=8,8,3", "--model.batch_size=8"),
                "--trainer.checkpoint_save_interval=1",
            )
            config = until_the_end.enter_context(in_process.trained(*always, *given))
            folder = tmp_path / config["trainer.experiment_name"] / "checkpoint"
            found = {}
            for step in checkpoints.steps(folder):
                prefix = str(folder / f"model-{step}")
                names = [n for n in checkpoints.shapes(prefix) if re.match("vit/|embedding", n)]
                found[step] = dict(zip(names, checkpoints.values(prefix, names), strict=True))
            return found, prefix

        yield run


def test_the_preset_for_vision_transformers(trained):
    """A step of the head alone, then the blocks, less the nearer to the images."""
    steps, _ = trained(
        *("--preset=finetune-vit", "--model.num_steps=2", "--model.ema_decay=0"),
        *("--model.learning_rate_factor.from_step=1", "--model.lr_schedule.warmup_steps=1"),
    )
    assert ranker.config["model.drop_path"] > 0
    start = eagerly(lambda: {f"vit/{v.path}": v.numpy() for v in transformer().variables})
    assert start.keys() < steps[1].keys()
    for name, value in start.items():
        np.testing.assert_array_equal(steps[1][name], value, err_msg=name)
        if "patch_embedding" in name:
            np.testing.assert_array_equal(steps[2][name], value)

    def moved(name):
        return np.abs(steps[2][name] - steps[1][name]).max()

    by_block = [moved(f"vit/block_{i}/mlp/kernel") for i in range(BLOCKS)]
    # Adam's first updates are near 1 in size: what differs is the rate, by .75 from block to block.
    assert 0 < by_block[0] < by_block[1] < by_block[2] < moved("embedding/kernel")


def test_an_export_has_merged_low_rank_updates(trained, tmp_path):
    _, prefix = trained(
        *("--model.lora_rank=2", "--nomodel.cached_features", "--model.num_steps=1"),
        *("--model.ema_decay=0.5", "--model.lr_schedule.cosine.value=0.05"),
    )
    with tf.Graph().as_default(), v1.Session() as session:
        model = ranker.build()
        variables = v1.global_variables()
        checkpoints.restore(session, prefix, variables, averages=True)
        expected = session.run(model.embeddings, {"image:0": IMAGES})
        operations = len(towers.ancestors([model.embeddings]))
        names = {v.op.name for v in variables}
        (moved,) = session.run([v for v in variables if v.op.name.endswith("_2/mlp/lora_kernel_b")])
    assert np.abs(moved).max() > 1e-3  # there is something to merge
    export.export(ranker, prefix, str(tmp_path / "served"))
    served = tf.train.load_checkpoint(str(tmp_path / "served" / "variables" / "variables"))
    assert {n for n in names if "lora" not in n} == set(served.get_variable_to_shape_map())
    with tf.Graph().as_default() as graph, v1.Session() as session:
        found = v1.saved_model.load(session, ["serve"], str(tmp_path / "served"))
        signature = found.signature_def["serving_default"]
        output = signature.outputs["embeddings"].name
        vectors = session.run(output, {signature.inputs["image"].name: IMAGES})
        assert not any("lora" in op.name for op in graph.get_operations())
        assert len(towers.ancestors([graph.get_tensor_by_name(output)])) < operations
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-6)
