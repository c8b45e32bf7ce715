"""Networks by address: built on towers, trained, saved, and refused in one line."""

import io
import json
import pathlib
import shutil
import sys
import tarfile

import numpy as np
import pytest
import tensorflow as tf

from models import backbones
from trainer import checkpoints, layers, towers

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import savedmodels

pytestmark = pytest.mark.numeric
v1 = tf.compat.v1
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
DEVICES = ["/device:CPU:0", "/device:CPU:1"]
SESSION = v1.ConfigProto(device_count={"CPU": 2})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Addresses of the SavedModels."""
    root = tmp_path_factory.mktemp("saved")
    for name in ("tf2", "tf1", "tf2_signature"):
        getattr(savedmodels, f"write_{name}")(str(root / name))
    return root


def towers_of(backbone, train):
    def build(inputs, train_phase):
        return {"features": backbone.apply(inputs["image"], train_phase)}

    inputs = {"image": tf.constant(IMAGES)}
    built = towers.replicate(build, inputs, DEVICES, train_phase=train)
    return tf.concat([tower["features"] for tower in built], 0)


def initial_features(folder):
    """What the SavedModel itself computes, run by TensorFlow eagerly."""
    pixels = tf.constant(IMAGES / np.float32(255))
    if folder.name == "tf2":
        return tf.saved_model.load(str(folder))(pixels, training=False).numpy()
    loaded = tf.saved_model.load(str(folder), tags=[])
    return loaded.signatures["default"](pixels)["default"].numpy()


@pytest.mark.parametrize("name", ("tf2", "tf1"))
def test_a_saved_model_trains_on_towers_and_resumes_from_a_checkpoint(folders, tmp_path, name):
    """Variables are shared, start from the weights, are trained, saved by name, and restored."""
    backbone = backbones.load(str(folders / name), input_range="0,1")
    assert len(backbone.fingerprint) == 64
    expected = initial_features(folders / name)
    with tf.Graph().as_default(), v1.Session(config=SESSION) as session:
        train, served = towers_of(backbone, True), towers_of(backbone, False)
        variables = backbone.variables()
        assert set(variables) == set(v1.global_variables())
        names = {v.op.name for v in variables}
        assert {f"{name}/conv/kernel", f"{name}/norm/gamma", f"{name}/norm/moving_mean"} <= names
        trained = v1.trainable_variables()
        assert trained and not any("moving" in v.op.name for v in trained)
        loss = tf.reduce_mean(tf.square(train))
        gradients = v1.gradients(loss, trained, colocate_gradients_with_ops=True)
        assert all(g is not None for g in gradients)
        with tf.control_dependencies(v1.get_collection(v1.GraphKeys.UPDATE_OPS)):
            update = v1.train.GradientDescentOptimizer(0.1).apply_gradients(
                zip(gradients, trained, strict=True)
            )
        averages = v1.train.ExponentialMovingAverage(0.9)
        averages.apply(trained)
        session.run(v1.global_variables_initializer())
        found = session.run(served)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        before = session.run({v.op.name: v for v in variables})
        average = averages.average(next(v for v in trained if "conv/kernel" in v.op.name))
        np.testing.assert_array_equal(session.run(average), before[f"{name}/conv/kernel"])
        session.run(update)
        after = session.run({v.op.name: v for v in variables})
        for changed in (f"{name}/conv/kernel", f"{name}/norm/gamma", f"{name}/norm/moving_mean"):
            assert np.abs(after[changed] - before[changed]).max() > 0, changed
        (tmp_path / "checkpoint").mkdir()
        writer = checkpoints.Writer(session, variables, str(tmp_path / "checkpoint"), 1)
        writer.save(1, wait=True)
        moved = session.run(served)
    with tf.Graph().as_default(), v1.Session() as session:
        features = backbone.apply(tf.constant(IMAGES))
        prefix = checkpoints.latest(str(tmp_path / "checkpoint"))
        checkpoints.restore(session, prefix, v1.global_variables())
        np.testing.assert_allclose(session.run(features), moved, atol=1e-5)
    assert np.abs(moved - found).max() > 1e-3


def test_what_tells_one_saved_model_from_another(tmp_path):
    """Its graph and weights are its fingerprint; range and resizing are in its preprocessing."""

    def load(name, *, note=None, **options):
        folder = tmp_path / name
        if not folder.exists():
            savedmodels.write_tf2_signature(str(folder), dtype=tf.float32, **options)
        (folder / "assets.extra").mkdir(exist_ok=True)
        note = {"input_range": [0, 1]} | (note or {})
        (folder / "assets.extra" / "prototrain.json").write_text(json.dumps(note))
        return backbones.load(str(folder))

    def changed(name, old, new):
        shutil.copytree(tmp_path / "net", tmp_path / "changed", dirs_exist_ok=True)
        content = (tmp_path / "net" / name).read_bytes()
        assert old in content
        (tmp_path / "changed" / name).write_bytes(content.replace(old, new))
        return load("changed").fingerprint

    first = load("net")
    weights = "variables/variables.data-00000-of-00001"
    others = [
        changed("saved_model.pb", b"other", b"Other"),
        changed(weights, np.float32(2).tobytes(), np.float32(3).tobytes()),
    ]
    assert len({first.fingerprint, *others}) == 3
    window = {"method": "bicubic", "share": 0.5, "square": True}
    words = {
        first.preprocessing,
        load("net", note={"input_range": [-1, 1]}).preprocessing,
        load("net", note={"resizing": window}).preprocessing,
        load("net", note={"resizing": window | {"share": 0.6}}).preprocessing,
    }
    assert len(words) == 4 and load("net").fingerprint == first.fingerprint


@pytest.mark.parametrize("name", ("tf2", "tf1", "mobilenet"))
@pytest.mark.parametrize("how", ("argument", "context"))
def test_frozen_batch_norm_trains_with_the_moving_averages(folders, name, how):
    backbone = backbones.load(
        name if name == "mobilenet" else str(folders / name), input_range="0,1"
    )
    with tf.Graph().as_default(), v1.Session() as session:
        if how == "argument":
            train = backbone.apply(tf.constant(IMAGES), True, frozen_batch_norm=True)
        else:
            with layers.frozen_batch_norm():
                train = backbone.apply(tf.constant(IMAGES), True)
        with v1.variable_scope(v1.get_variable_scope(), reuse=True):
            served = backbone.apply(tf.constant(IMAGES))
        assert not v1.get_collection(v1.GraphKeys.UPDATE_OPS)
        session.run(v1.global_variables_initializer())
        averages = [v for v in backbone.variables() if "moving" in v.op.name]
        before = session.run(averages)
        np.testing.assert_array_equal(*session.run([train, served]))
        np.testing.assert_equal(session.run(averages), before)


@pytest.mark.parametrize(
    ("name", "declared", "features"),
    (("resnet18", 512, 512), ("mobilenet", 1024, 1024), ("convnet", None, 2 * 2 * 128)),
)
def test_networks_from_nothing(name, declared, features):
    backbone = backbones.load(name)
    assert (backbone.fingerprint, backbone.features) == ("", declared)
    with tf.Graph().as_default(), v1.Session() as session:
        served = backbone.apply(tf.constant(IMAGES))
        assert served.shape == (4, features)
        assert all(v.op.name.startswith(f"{name}/") for v in backbone.variables())
        session.run(v1.global_variables_initializer())
        assert np.isfinite(session.run(served)).all()


def test_a_signature_of_integers_takes_the_pixels_as_they_are(folders):
    backbone = backbones.load(str(folders / "tf2_signature"))
    assert backbone.image_size == (8, 8)
    with tf.Graph().as_default(), pytest.raises(ValueError, match="of 8 x 8, not 16 x 16"):
        backbone.apply(tf.constant(IMAGES))
    with tf.Graph().as_default(), v1.Session() as session:
        found = backbone.apply(tf.constant(IMAGES[:, :8, :8], tf.float32))
        (scale,) = v1.trainable_variables()
        (gradient,) = v1.gradients(tf.reduce_sum(found), [scale])
        session.run(v1.global_variables_initializer())
        expected = IMAGES[:, :8, :8].mean((1, 2)) * 2
        np.testing.assert_allclose(session.run(found), expected, rtol=1e-5)
        np.testing.assert_allclose(session.run(gradient), expected.sum() / 2, rtol=1e-5)


def test_an_address_on_the_net_is_fetched_once(folders, tmp_path, monkeypatch):
    """The URL of a .tar.gz; a stand-in for the network hands the archive over."""
    import tensorflow_hub.resolver as resolver

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(folders / "tf2", arcname=".")
    calls = []

    def urlopen(self, request):
        calls.append(request)
        return io.BytesIO(packed.getvalue())

    monkeypatch.setattr(resolver.HttpResolverBase, "_call_urlopen", urlopen)
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))
    address = "https://example.org/net.tar.gz"
    first, again = (backbones.load(address) for _ in range(2))
    assert len(calls) == 1
    local = backbones.load(str(folders / "tf2"), input_range="0,1")
    assert first.fingerprint == again.fingerprint == local.fingerprint


# ------------------------------------------------------------------------------ bad addresses


def no_images(folder):
    savedmodels.write_tf2_signature(str(folder), size=(8, 8), channels=5)


def no_features(folder):
    savedmodels.write_tf2_signature(str(folder), output="scores")


def damaged(folder):
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"no protocol buffer")


def empty(folder):
    folder.mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_images, r"neither __call__ nor a signature that takes images \[B, H, W, 3\]; its "),
        (no_features, r"which output has the features\? It has other, scores"),
        (damaged, r"saved_model\.pb: not a SavedModel that can be read"),
        (empty, r"saved_model\.pb: there is no such file; give the folder of"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_a_folder_that_will_not_do(tmp_path, make, message):
    folder = tmp_path / "net"
    make(folder)
    with pytest.raises(ValueError, match=message) as caught:
        backbones.load(str(folder))
    assert f"The backbone '{folder}' cannot be used" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "http://127.0.0.1:9/net",
            "'http://127.0.0.1:9/net' cannot be used: it cannot be",
        ),
        ("/no/such/folder", "there is no such folder. Give one, a URL, or resnet18"),
        ("mobilenett", "Did you mean 'mobilenet'"),
        ("pretrained:efficientnet_lite9", "no pretrained 'efficientnet_lite9'; there are eff"),
    ],
)
def test_an_address_where_nothing_is(address, message):
    with pytest.raises(ValueError, match=message) as caught:
        backbones.load(address)
    assert "\n" not in str(caught.value)


def test_reference_variables_are_refused(folders, tmp_path):
    folder = tmp_path / "references"
    builder = v1.saved_model.Builder(str(folder))
    with tf.Graph().as_default(), v1.Session() as session:
        images = v1.placeholder(tf.float32, [None, None, None, 3])
        weights = v1.get_variable("weights", [3, 4], use_resource=False)
        output = tf.matmul(tf.reduce_mean(images, [1, 2]), weights)
        session.run(v1.global_variables_initializer())
        signature = v1.saved_model.predict_signature_def({"images": images}, {"default": output})
        builder.add_meta_graph_and_variables(session, [], {"default": signature})
    builder.save()
    backbone = backbones.load(str(folder), input_range="0,1")
    with tf.Graph().as_default(), pytest.raises(ValueError, match="weights is a reference var"):
        backbone.apply(tf.constant(IMAGES))
