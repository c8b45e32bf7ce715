"""Published networks through KerasHub against PyTorch's features and gradients in float64."""

import importlib.resources
import io
import json
import pathlib
import re
import sys
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import in_process
import published

from models import backbones
from trainer import checkpoints, layers

pytest.importorskip("keras_hub", reason="the extra [kerashub] is not installed")
pytestmark = pytest.mark.numeric
v1 = tf.compat.v1
RECIPES = importlib.resources.files("models.ranker") / "configs"
ORACLE = json.loads(published.PATH.read_text())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    return {name: published.folder(root / name, family) for name, family in ORACLE.items()}


def run(backbone, size):
    """Features of the size's images, and the oracle's gradient by pixels."""
    with tf.Graph().as_default(), v1.Session() as session:
        pixels = tf.constant(published.images(size), tf.float32)
        features = backbone.apply(pixels)
        loss = tf.reduce_sum(features * published.direction(features.shape[1]))
        (slope,) = v1.gradients(loss, [pixels])
        slope = tf.reduce_sum(tf.reshape(slope[0], [size // 4, 4, size // 4, 4, 3]), [1, 3])
        session.run(v1.global_variables_initializer())
        names = [v.op.name for v in backbone.variables()]
        # Convolutions with lists of paddings have no gradients of oneDNN's.
        of_maps = [op for op in session.graph.get_operations() if "Conv2D" in op.type]
        assert {op.get_attr("padding") for op in of_maps} <= {b"SAME", b"VALID"}
        return *session.run([features, slope]), names


@pytest.mark.parametrize("name", ORACLE)
def test_features_and_gradients_equal_pytorch(folders, name):
    backbone = backbones.load(f"kerashub:{folders[name]}")
    by_size = []
    for case in ORACLE[name]["cases"]:
        features, slope, names = run(backbone, case["size"])
        by_size.append(names)
        for found, expected in ((features, case["features"]), (slope, case["slope"])):
            expected = np.reshape(expected, found.shape)
            error = np.abs(found - expected).max() / np.abs(expected).max()
            assert error < 1e-5, (case["size"], error)
    assert all(names == by_size[0] for names in by_size), "names depend on the images' size"
    assert not any("text" in n or "token_embedding" in n for n in by_size[0])


def open_clip(tensors):
    """CLIP's image tower in OpenCLIP's names, from Hugging Face's."""
    found = {}
    for name, value in tensors.items():
        name = name.removeprefix("vision_model.")
        for theirs, ours in (
            ("embeddings.class_embedding", "class_embedding"),
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("embeddings.patch_embedding", "conv1"),
            ("pre_layrnorm", "ln_pre"),
            ("post_layernorm", "ln_post"),
            ("encoder.layers", "transformer.resblocks"),
            ("self_attn", "attn"),
            ("layer_norm", "ln_"),
            ("fc1", "c_fc"),
            ("fc2", "c_proj"),
        ):
            name = name.replace(theirs, ours)
        if name == "visual_projection.weight":
            name, value = "proj", value.T
        found[f"visual.{name}"] = value
    for i in range(2):
        for end in ("weight", "bias"):
            start = f"visual.transformer.resblocks.{i}.attn."
            parts = [found.pop(f"{start}{p}_proj.{end}") for p in "qkv"]
            found[f"{start}in_proj_{end}"] = np.concatenate(parts)
    return found


def test_clip_of_open_clip_is_that_of_hugging_face(tmp_path):
    family = ORACLE["clip"]
    values = {n: published.value(n, s) for n, s in family["shapes"].items()}
    tower = {n: v for n, v in values.items() if n.startswith(("vision_model.", "visual_"))}
    processor = family["files"]["preprocessor_config.json"]
    config = {
        "model_cfg": {
            "vision_cfg": {"image_size": 24, "width": 32, "head_width": 16},
            "quick_gelu": True,
        },
        "preprocess_cfg": {"mean": processor["image_mean"], "std": processor["image_std"]},
    }
    files = {"files": {"open_clip_config.json": config}, "weights": "open_clip_model.safetensors"}
    path = published.folder(tmp_path / "clip", files, open_clip(tower))
    features, _, _ = run(backbones.load(f"kerashub:{path}"), 24)
    expected = np.reshape(family["cases"][0]["features"], features.shape)
    np.testing.assert_allclose(features, expected, atol=1e-5 * np.abs(expected).max())


def test_kerashubs_own_format_and_a_mended_drop_path(tmp_path):
    """A DINOv2 that KerasHub saved: positions are resized by PyTorch's rule here, too."""
    import keras
    import keras_hub

    from trainer import towers
    from trainer.keras_model import eagerly

    def save():
        keras.utils.set_random_seed(0)
        network = keras_hub.models.DINOV2Backbone(
            patch_size=4, num_layers=2, hidden_dim=32, num_heads=2, intermediate_dim=64,
            image_shape=(24, 24, 3), position_embedding_shape=(24, 24), drop_path_rate=0.9,
        )  # fmt: skip
        network.save_to_preset(tmp_path)
        converter = {"config": {"image_size": [24, 24], "scale": 1 / 255, "offset": -0.5}}
        (tmp_path / "image_converter.json").write_text(json.dumps(converter))
        pixels = published.images(24).astype(np.float32) / 255 - 0.5
        return network({"images": pixels}, training=False)[:, 0].numpy()

    expected = eagerly(save)
    backbone = backbones.load(f"kerashub:{tmp_path}")
    assert backbone.image_size == (24, 24)
    np.testing.assert_allclose(run(backbone, 24)[0], expected, atol=1e-5 * np.abs(expected).max())
    images = np.concatenate([published.images(24)] * 4)

    def trained(count):
        def build(inputs, train_phase):
            return {"features": backbone.apply(inputs["image"], train_phase)}

        devices = [f"/device:CPU:{i}" for i in range(count)]
        sessions = v1.ConfigProto(device_count={"CPU": 2})
        with tf.Graph().as_default(), v1.Session(config=sessions) as session:
            inputs, step = {"image": tf.constant(images)}, tf.constant(0, tf.int64)
            parts = towers.replicate(build, inputs, devices, train_phase=True, step=step)
            joined = tf.concat([part["features"] for part in parts], 0)
            session.run(v1.global_variables_initializer())
            return session.run(joined)

    one, two = trained(1), trained(2)
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-5 * np.abs(one).max())
    # The same two images again and again: dropped in some examples, not in all.
    assert 1 < len(np.unique(np.round(one[::2], 4), axis=0)) <= 4


def test_a_network_of_maps_takes_any_size(tmp_path):
    import keras_hub

    from trainer.keras_model import eagerly

    def save():
        network = keras_hub.models.ResNetBackbone(
            input_conv_filters=[64], input_conv_kernel_sizes=[7], stackwise_num_filters=[64],
            stackwise_num_blocks=[1], stackwise_num_strides=[1], block_type="basic_block",
            image_shape=(None, None, 3),
        )  # fmt: skip
        network.save_to_preset(tmp_path)

    eagerly(save)
    (tmp_path / "image_converter.json").write_text('{"config": {}}')
    backbone = backbones.load(f"kerashub:{tmp_path}", pooling="gem")
    for size in (24, 32):
        features, _, names = run(backbone, size)
        assert features.shape == (2, 64) and np.isfinite(features).all()
    assert any("moving_mean" in name for name in names)


def test_low_rank_updates_of_a_vision_transformer(folders):
    backbone = backbones.load(f"kerashub:{folders['dinov2']}", lora_rank=2)
    case = ORACLE["dinov2"]["cases"][0]
    features, _, names = run(backbone, 24)
    expected = np.reshape(case["features"], features.shape)
    np.testing.assert_allclose(features, expected, atol=1e-5 * np.abs(expected).max())
    query = "dinov2/encoder/layers_1/attention/attention/query"
    assert {f"{query}/kernel", f"{query}/lora_kernel_a", f"{query}/lora_kernel_b"} <= set(names)


@pytest.mark.parametrize("name", ("dinov2", "dinov3", "swin", "vit", "clip", "siglip"))
def test_drop_path_by_the_networks_own_layers_or_by_blocks(folders, name):
    """Examples of one image get different features in training, the same in use as without."""
    size = ORACLE[name]["cases"][0]["size"]
    images = np.repeat(published.images(size)[:1], 16, 0)
    backbone = backbones.load(f"kerashub:{folders[name]}", drop_path=0.5)
    with (
        tf.Graph().as_default(),
        v1.Session() as session,
        layers.replica(0, tf.constant(0, tf.int64), tf.constant(0, tf.int64)),
    ):
        trained = backbone.apply(tf.constant(images), True)
        with v1.variable_scope(v1.get_variable_scope(), reuse=True):
            served = backbone.apply(tf.constant(published.images(size)))
        session.run(v1.global_variables_initializer())
        trained, served = session.run([trained, served])
        # The first block is never skipped; the second is, or its two paths are, one by one.
        kinds = np.unique(np.round(trained, 4), axis=0)
        assert 2 <= len(kinds) <= (16 if name in ("dinov2", "dinov3", "swin") else 2)
        patches = [v for v in backbone.variables() if "patch_embed" in v.op.name]
    expected = np.reshape(ORACLE[name]["cases"][0]["features"], served.shape)
    np.testing.assert_allclose(served, expected, atol=1e-5 * np.abs(expected).max())
    assert any(v.op.name.endswith("kernel") for v in patches), "the preset freezes them by name"


@pytest.mark.parametrize("kind", ("F16", "BF16"))
def test_half_precision_is_read_as_float32(tmp_path, kind):
    family = ORACLE["vit"]
    path = published.folder(tmp_path / "vit", family)
    values = {n: published.value(n, s) for n, s in family["shapes"].items()}
    published.write(path / "model.safetensors", values, kind)
    features, _, _ = run(backbones.load(f"kerashub:{path}"), 24)
    expected = np.reshape(family["cases"][0]["features"], features.shape)
    error = np.abs(features - expected).max() / np.abs(expected).max()
    assert 1e-5 < error < 0.1  # of rounded weights


def changed(name, edit, size=24):
    """Builds a family whose tensors were edited."""

    def build(folder):
        family = ORACLE[name]
        values = {n: published.value(n, s) for n, s in family["shapes"].items()}
        path = published.folder(folder / name, family, edit(values))
        run(backbones.load(f"kerashub:{path}"), size)

    return build


def described(name, **changes):
    """Builds a family whose config.json says something else."""

    def build(folder):
        family = ORACLE[name]
        files = family["files"] | {"config.json": family["files"]["config.json"] | changes}
        path = published.folder(folder / name, family | {"files": files})
        run(backbones.load(f"kerashub:{path}"), 24)

    return build


def without(name):
    return lambda values: {n: v for n, v in values.items() if n != name}


def without_all(part):
    return lambda values: {n: v for n, v in values.items() if part not in n}


def replaced(edit, name="model.safetensors"):
    """Builds a network whose file of weights holds other bytes, under this name."""

    def build(folder):
        path = published.folder(folder / "vit", ORACLE["vit"])
        whole = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").unlink()
        (path / name).write_bytes(edit(whole))
        run(backbones.load(f"kerashub:{path}"), 24)

    return build


def shifted(whole):
    start = 8 + int.from_bytes(whole[:8], "little")
    return whole[:start] + bytes(4) + whole[start:]


def torch_script(whole):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("net/constants.pkl", b"")
        archive.writestr("net/code/__torch__.py", b"")
    return buffer.getvalue()


def of_keras(edit):
    """Builds a folder in KerasHub's own format after a change of it."""

    def build(folder):
        import keras_hub

        from trainer.keras_model import eagerly

        def save():
            keras_hub.models.ViTBackbone(
                image_shape=(24, 24, 3), patch_size=4, num_layers=1, num_heads=2, hidden_dim=32,
                mlp_dim=48,
            ).save_to_preset(folder)  # fmt: skip

        eagerly(save)
        (folder / "image_converter.json").write_text('{"config": {}}')
        edit(folder)
        run(backbones.load(f"kerashub:{folder}"), 24)

    return build


def weights(edit):
    """KerasHub's own format, its weights other bytes; None: no file."""

    def change(folder):
        whole = (folder / "model.weights.h5").read_bytes()
        (folder / "model.weights.h5").unlink()
        if (found := edit(whole)) is not None:
            (folder / "model.weights.h5").write_bytes(found)

    return of_keras(change)


def configured(**changes):
    """KerasHub's own format, its configuration changed."""

    def change(folder):
        found = json.loads((folder / "config.json").read_text())
        inner = found["config"] | changes.pop("config", {})
        found |= {"config": inner} | changes
        (folder / "config.json").write_text(json.dumps(found))

    return of_keras(change)


KERNEL = "vision_model.encoder.layers.1.mlp.fc1.weight"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (changed("clip", without(KERNEL)), f"the tensor {KERNEL} is missing"),
        (changed("siglip", lambda v: v | {"vision_model.odd": v[KERNEL]}), "odd is unknown"),
        (
            changed("clip", lambda v: v | {KERNEL: v[KERNEL][:, :5]}),
            r"is \(32, 48\), not \(5, 48\)",
        ),
        (changed("vit", without("layernorm.weight")), "the tensor .*layernorm.weight is missing"),
        (changed("timm_dinov2", without("norm.bias")), "the tensor layernorm.bias is missing"),
        (changed("dinov2", dict, 26), "26 x 26 are no multiple of its patches, 4; give 24 or 28"),
        (replaced(lambda whole: whole[:-10]), "the file is truncated or damaged"),
        (replaced(shifted), "are not contiguous: it is damaged"),
        (replaced(lambda whole: b"version https://git-lfs.github.com/spec/v1"), "Git LFS pointer"),
        (replaced(lambda whole: b"<!DOCTYPE html><html>"), "model.safetensors: it is a web page"),
        (replaced(torch_script), "it is a zip archive of PyTorch, TorchScript"),
        (replaced(torch_script, "pytorch_model.bin"), "pickles .* not supported; convert it to"),
        (replaced(lambda whole: whole.replace(b'"F32"', b'"F8X"')), "is of the type F8X; known"),
        (weights(lambda whole: b"version https://git-lfs"), "weights.h5: it is a Git LFS pointer"),
        (weights(lambda whole: None), "model.weights.h5: cannot be read: No such file"),
        (weights(lambda whole: whole[:-9]), "model.weights.h5: it is damaged: .*truncated file"),
        (configured(config={"num_layers": 2}), "layers of config.json have no weights in the file"),
        (
            configured(registered_name="keras_hub>ResNetBackbone"),
            "config.json: ResNetBackbone.__init__.. missing",
        ),
        (
            described("dinov2_with_registers", num_register_tokens="x"),
            "config.json: invalid literal for int",
        ),
        (described("clip", text_config=None), "config.json: .*NoneType"),
        (described("dinov2", mlp_ratio=None), "its configuration: unsupported operand"),
        (changed("clip", without_all("mlp.fc1")), "the tensor .*fc1.weight is missing"),
    ],
)
def test_weights_that_will_not_do(tmp_path, build, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count(str(tmp_path)) == 1


def test_wrapped_weights_are_unwrapped(tmp_path):
    changed("dinov2", lambda values: {f"teacher.backbone.{n}": v for n, v in values.items()})(
        tmp_path
    )


@pytest.mark.parametrize("pooling", ("mean", "concat"))
def test_towers_of_images_give_their_tokens_to_another_pooling(folders, pooling):
    backbone = backbones.load(f"kerashub:{folders['clip']}", pooling=pooling)
    assert run(backbone, 24)[0].shape == (2, 32 if pooling == "mean" else 64)
    siglip = f"kerashub:{folders['siglip']}"
    assert run(backbones.load(siglip, pooling="mean"), 24)[0].shape == (2, 32)


@pytest.mark.parametrize(
    ("recipe", "size"), [("sop_dinov2", 112), ("sop_siglip", 24), ("grocery_dinov2", 24)]
)
def test_a_recipe_trains_random_weights_of_its_network(
    folders, tmp_path, recipe, size, monkeypatch
):
    """DINOv2-S at its real shape, the others as tiny networks of the same layout."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    family = "siglip" if "siglip" in recipe else "dinov2"
    network = folders[family]
    if size == 112:
        network = published.folder(tmp_path / "whole", published.dinov2_small())
    lines = ["path,label,split,role"]
    for i in range(12):
        pixels = np.full((24, 24, 3), 20 * (i // 3), np.uint8) + published.images(24)[0] // 2
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        role = "catalogue" if i % 3 == 0 and recipe.startswith("grocery") else ""
        lines.append(f"{i}.png,p{i // 3},{role or 'train'},{role}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    with in_process.trained(
        f"--flagfile={RECIPES / recipe}.flags",
        f"--model.hub_address=kerashub:{network}",
        *(f"--trainer.experiment_base_dir={tmp_path}", f"--dataset.base_path={tmp_path}"),
        *("--dataset.name=manifest", "--nodataset.validation", "--dataset.images_per_product=2"),
        *(f"--model.default_image_dimensions={size},{size},3", "--model.batch_size=8"),
        *("--model.num_steps=3", "--trainer.evaluation_interval=0"),
    ) as config:
        folder = tmp_path / config["trainer.experiment_name"] / "checkpoint"
        shapes = checkpoints.shapes(checkpoints.latest(str(folder)))
    assert checkpoints.steps(folder) == [3]
    if size == 112:
        query = "whole/encoder/layers_11/attention/attention/query/kernel"
        assert shapes[query] == [384, 6, 64]


def test_recipes_of_in_shop_are_those_of_sop():
    def flags_of(name):
        lines = (RECIPES / f"{name}.flags").read_text().splitlines()
        own = r"#|--(trainer.experiment_name|dataset.name|model.num_steps)="
        return [line for line in lines if not re.match(own, line)]

    for network in ("dinov2", "siglip"):
        assert flags_of(f"inshop_{network}") == flags_of(f"sop_{network}")
