"""models.ranker from data to report: the paper's recipes, losses, cached features, export."""

import dataclasses
import importlib.resources
import json
import re
import types

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from PIL import Image

from metriclearn import LOSSES, MINERS, PROXY_LOSSES, augment
from metriclearn.datasets import parse_conditions
from models import ranker
from models.ranker import head
from trainer import checkpoints, experiment, export, loop, meters
from trainer.commandline import from_flags
from trainer.config import UserError
from trainer.layers import ModelDict, conv2d

v1 = tf.compat.v1
datasets = importlib.import_module("models.ranker.datasets")
definition = importlib.import_module("models.ranker.definition")
RECIPES = importlib.resources.files("models.ranker") / "configs"
SMALL = [
    "--model.default_image_dimensions=32,32,3",
    "--model.batch_size=8",
    "--model.num_steps=3",
    "--trainer.evaluation_interval=3",
    "--trainer.print_interval=1",
    "--trainer.summary_save_interval=2",
]


@pytest.fixture
def config(tmp_path):
    """The ranker's configuration, set back afterwards; experiments go to a folder of their own."""
    before = ranker.config.to_dict()
    ranker.config["trainer.experiment_base_dir"] = str(tmp_path)
    yield ranker.config
    ranker.config.update(before)


class Small(tf.Module):
    """A network of one convolution, as TensorFlow Hub hands them over."""

    def __init__(self):
        super().__init__()
        self.kernel = tf.Variable(tf.random.stateless_normal([3, 3, 3, 8], (1, 2)), name="kernel")

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32)])
    def __call__(self, images):
        x = tf.nn.relu(tf.nn.conv2d(images, self.kernel, 2, "SAME"))
        return tf.reduce_mean(x, [1, 2])


def paint(path, product, i):
    """A JPEG of a product: its colour, with noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng([product, i])
    colour = np.random.default_rng(product).integers(0, 256, 3)
    pixels = np.clip(colour + random.integers(-30, 30, (40, 36, 3)), 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


# ---------------------------------------------------------------------------- the paper's recipes


def sop(root):
    """Stanford Online Products, as it unpacks: 6 products of each of 2 categories, then 4 more."""
    header, lists, number = "image_id class_id super_class_id path\n", {}, 0
    for split, products in (("train", range(12)), ("test", range(12, 16))):
        lines = []
        for p in products:
            for i in range(3):
                number += 1
                name = f"{('bicycle', 'mug')[p % 2]}_final/{p:012d}_{i}.JPG"
                paint(root / name, p, i)
                lines.append(f"{number} {p + 1} {p % 2 + 1} {name}\n")
        lists[split] = header + "".join(lines)
    for split, text in lists.items():
        (root / f"Ebay_{split}.txt").write_text(text)


def deepfashion(root):
    """Consumer-to-Shop, as it unpacks: 6 garments to train on, 3 to validate, 3 to test."""
    pairs, boxes = [], []
    for p in range(12):
        status = "train" if p < 6 else "val" if p < 9 else "test"
        names = [f"img/TOPS/Tee/id_{p:08d}/{n}_{i}.jpg" for n, i in (("c", 0), ("c", 1), ("s", 2))]
        for i, name in enumerate(names):
            paint(root / name, p, i)
            boxes.append(f"{name} 1 {1 if i == 2 else 2} 4 5 30 35")
        pairs += [f"{name} {names[2]} id_{p:08d} {status}" for name in names[:2]]
    (root / "Anno").mkdir()
    (root / "Eval").mkdir()
    (root / "Anno" / "list_bbox_consumer2shop.txt").write_text(
        f"{len(boxes)}\nimage_name clothes_type source_type x_1 y_1 x_2 y_2\n" + "\n".join(boxes)
    )
    (root / "Eval" / "list_eval_partition.txt").write_text(
        f"{len(pairs)}\nimage_pair_name_1 image_pair_name_2 item_id evaluation_status\n"
        + "\n".join(pairs)
    )


@pytest.mark.parametrize(
    "recipe, write, counts", [("sop", sop, (12, 12)), ("deepfashion", deepfashion, (6, 3))]
)
def test_recipe_runs_from_the_official_layout_to_a_report(program, tmp_path, recipe, write, counts):
    write(tmp_path / "data")
    tf.saved_model.save(Small(), str(tmp_path / "small"))
    flags = f"--flagfile={RECIPES / recipe}.flags"
    places = [
        f"--dataset.base_path={tmp_path / 'data'}",
        f"--model.hub_address={tmp_path / 'small'}",
        "--model.hub_input_range=0,1",
    ]
    arguments = [flags, *places, *SMALL]
    code, out, err = program("trainer.main", *arguments)
    assert code == 0, err
    folder = tmp_path / "experiments" / f"exp-ranker-{recipe}"
    figures = meters.read_metrics(folder)
    assert [line["step"] for line in figures if "lr" in line] == [1, 2, 3]
    assert any("recall@1" in line for line in figures)
    saved = json.loads((folder / "config.json").read_text())
    assert saved["model.miner"] == "given_positive" and saved["model.margin"] == 0.1
    assert saved["model.random_within_class"] == (0.8 if recipe == "sop" else 0)
    code, out, err = program(
        "retrieval.eval", "--model=models.ranker", f"--trainer.experiment_name={folder.name}",
        "--noevaluation.histogram", "--evaluation.precision@k.num_to_retrieve=11",
        "--checkpoint=last",
    )  # fmt: skip
    assert code == 0, err
    result = json.loads((folder / "analysis" / "model-3-eval.json").read_text())
    assert (result["num_queries"], result["num_catalogue"]) == counts
    assert {"frozen_backbone", "frozen_backbone_color"} <= set(result)
    lists = json.loads((folder / "analysis" / "model-3-top_retrieved.json").read_text())
    assert {len(entry["results"]) for entry in lists} == {min(11, counts[1])}
    drawn = {path.name for path in (folder / "analysis").glob("*.png")}
    assert "model-3-recall_at_k.png" in drawn and "model-3-histogram.png" not in drawn


@pytest.mark.parametrize("recipe", ["grocery_head", "grocery", "grocery_larger", "grocery_unseen"])
def test_grocery_recipe_sets_known_keys(config, recipe):
    values = flags.FlagValues()
    flags.DEFINE_string("model", None, "model", flag_values=values)
    model, given, rest = from_flags(["main", f"--flagfile={RECIPES / recipe}.flags"], values)
    assert model is ranker and not rest and "model.num_steps" in given
    assert config["dataset.name"] == "grocery" and config["dataset.domains"]
    assert config["model.cached_features"] == (recipe in ("grocery_head", "grocery_unseen"))
    if recipe == "grocery_unseen":
        keys = "dataset.train_where", "dataset.test_where"
        names = [set(parse_conditions(config[key])["product"]) for key in keys]
        assert [len(part) for part in names] == [54, 27] and not names[0] & names[1]


# ---------------------------------------------------------------------------- losses


def batch(size=12, dimension=4):
    random = np.random.default_rng(0)
    embeddings = tf.nn.l2_normalize(tf.constant(random.normal(size=[size, dimension])), 1)
    labels = tf.constant(np.arange(size) % 4, tf.int64)
    return tf.cast(embeddings, tf.float32), labels


def value(train_phase=True, step=0, times=1):
    """The model's loss on a fixed batch, and its gradient by the embeddings."""
    with tf.Graph().as_default(), v1.Session() as session:
        v1.train.create_global_step()
        embeddings, labels = batch()
        outputs = ModelDict(embeddings=embeddings, labels=labels, train_phase=train_phase)
        result = definition.loss(outputs)["loss"]
        gradient = tf.gradients(result, embeddings)[0]
        session.run(v1.global_variables_initializer())
        session.run(v1.train.get_global_step().assign(step))
        for _ in range(times):
            found = session.run([result, gradient])
        return found


@pytest.fixture
def four_classes(monkeypatch):
    class Table:
        products = np.arange(4)

    monkeypatch.setattr(definition, "training_tables", lambda: (Table, None))


@pytest.mark.parametrize("name", [*LOSSES, *PROXY_LOSSES])
def test_every_loss_trains_and_validates(config, four_classes, name):
    config["model.loss"] = name
    result, gradient = value()
    assert np.isfinite(result) and np.abs(gradient).max() > 0
    if name in ("contrastive", "arcface"):  # in validation all others do as one of these
        assert np.isfinite(value(train_phase=False)[0])


@pytest.mark.parametrize(
    "loss, name",
    [("triplet", name) for name in MINERS if name != "given_positive"]
    + [("margin", name) for name in ("batch_hard", "distance_weighted", "hdc")],
)
def test_every_miner_mines_for_the_losses_that_take_one(config, name, loss):
    config.update({"model.miner": name, "model.loss": loss})
    result, gradient = value()
    assert np.isfinite(result) and np.abs(gradient).max() > 0


def test_options_reach_the_loss_and_the_miner(config):
    from metriclearn import triplet_loss

    config.update(
        {
            "model.loss": "triplet",
            "model.miner": "top_k_hard",
            "model.margin": 0.7,
            "model.distance": "squared",
            "model.miner.options": ["k=2"],
            "model.loss.options": ["soft_margin=true", "reduction=sum"],
        }
    )
    found = value()[0]
    embeddings, labels = batch()

    def two_nearest(labels, embeddings, **options):
        return MINERS["top_k_hard"](labels, embeddings, k=2, **options)

    def miner(labels, embeddings):
        return two_nearest(labels, embeddings, distance="squared")

    expected = triplet_loss(
        labels, embeddings, miner=miner, distance="squared", soft_margin=True, reduction="sum"
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_distance_weighted_draws_anew_at_each_step(config):
    config.update({"model.loss": "triplet", "model.miner": "distance_weighted"})
    config["model.margin"] = 2.0
    assert value(step=1)[0] != value(step=2)[0]
    assert value(step=2)[0] == value(step=2)[0]


def test_memory_adds_its_loss_from_its_first_step_on(config):
    config.update({"model.loss": "contrastive", "model.memory_start": 5})
    alone = value()[0]
    config["model.memory_size"] = 24
    assert value(step=4)[0] == alone
    assert value(step=5, times=2)[0] > alone
    # Validation neither fills the memory nor looks at it.
    assert value(train_phase=False, step=5)[0] == alone


@pytest.mark.parametrize(
    "values, words",
    [
        ({"model.loss.options": ["margn=1"]}, "'margn=1' is not name=value.*'margin'"),
        ({"model.loss.options": ["margin"]}, "not name=value"),
        ({"model.loss.options": ["reduction=median"]}, "unknown reduction 'median'"),
        ({"model.loss.options": ["reduction=none"]}, "model.loss.options: reduction=none"),
        ({"model.loss.options": ["margin=wide"]}, "model.loss=triplet with margin=wide: "),
        ({"model.miner.options": ["k=2"]}, "model.miner.options: 'k=2'"),
        ({"model.miner": "given_positive"}, "needs dataset.sampler=pairs"),
        (
            {
                "model.miner": "given_positive",
                "dataset.sampler": "pairs",
                "model.memory_size": 24,
            },
            "does not use a memory",
        ),
        ({"model.memory_size": 4}, "does not fit a memory of 4"),
    ],
)
def test_what_a_loss_cannot_do_is_said(config, values, words):
    config.update({"model.loss": "triplet"} | values)
    with pytest.raises(UserError, match=words):
        value()


def test_recall_is_in_the_catalogue_or_among_the_others():
    embeddings = np.eye(4, dtype=np.float32)[[0, 1, 0, 2]]
    outputs = {"embeddings": embeddings, "labels": np.array([0, 1, 0, 1])}
    shown = np.array([False, False, True, True])
    figures = definition.metrics({**outputs, "catalogue": shown})
    assert figures["recall@1"] == 0.5 and figures["recall@5"] == 1
    figures = definition.metrics({**outputs, "catalogue": np.zeros(4, bool)})
    assert figures["recall@1"] == 0.5


# ---------------------------------------------------------------------------- the network


class Tiny:
    """A backbone of one convolution, with weights that are always the same."""

    name, fingerprint, preprocessing, source = "tiny", "weights", "RGB / 255", ""
    texts, resizing = None, augment.RESIZING

    def apply(self, images, train_phase=False, frozen_batch_norm=False):
        x = tf.cast(images, tf.float32) / 255
        fixed = v1.constant_initializer(np.random.default_rng(1).normal(size=[3, 3, 3, 6]))
        with v1.variable_scope("tiny"):
            x = tf.nn.relu(conv2d(x, 6, 3, "conv", strides=2, initializer=fixed))
        return tf.reduce_mean(x, [1, 2])

    def variables(self):
        return [v for v in v1.global_variables() if re.match("tiny/conv/[a-z]+$", v.op.name)]


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """That backbone, and a shop of 8 products with 3 training pictures each, or 2 and one more."""

    monkeypatch.setattr(datasets, "load_backbone", lambda _: Tiny())
    monkeypatch.setattr(definition, "load_backbone", lambda _: Tiny())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lines = ["path,label,category,split,role"]
    for p in range(8):
        for i in range(6):
            paint(tmp_path / f"{p}-{i}.jpg", p, i)
            split, role = [("train", ""), ("val", ""), ("test", ""), ("catalogue", "catalogue")][
                max(0, i - 2)
            ]
            lines.append(f"{p}-{i}.jpg,p{p},c{p % 2},{split},{role}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    return tmp_path


def shop(config, folder, **values):
    config.update(
        {
            "trainer.evaluation_interval": 4,
            "trainer.validation_step_interval": 0,
            "model.default_image_dimensions": [24, 24, 3],
            "model.batch_size": 8,
            "model.num_steps": 4,
            "model.reduced_dimension": 4,
            "model.cached_features": False,
            "model.margin": 1.0,
            "model.lr_schedule.warmup_steps": 0,
            "dataset.name": "manifest",
            "dataset.base_path": str(folder),
            "dataset.domains": True,
            **values,
        }
    )


def train(config, folder, name, **values):
    """Trains; returns the newest checkpoint's reader."""
    shop(config, folder, **{"trainer.experiment_name": name, **values})
    loop.train(ranker, config)
    prefix = checkpoints.latest(str(folder / name / "checkpoint"))
    return prefix, tf.train.load_checkpoint(prefix)


def test_kept_features_are_those_of_windows_boxes_and_augmentations(config, tiny, monkeypatch):
    class Asked(Exception):
        pass

    def ask(folder, *arguments, **options):
        raise Asked(folder)

    monkeypatch.setattr(datasets.features.store, "fill", ask)
    shop(config, tiny)
    table, _ = datasets.training_tables()
    boxed = dataclasses.replace(table, boxes=np.full((len(table), 4), (2, 2, 9, 9)))

    def store(table=table, views=1, resizing=augment.RESIZING, **changes):
        monkeypatch.setattr(Tiny, "resizing", resizing)
        before = {key: config[key] for key in changes}
        config.update(changes)
        with pytest.raises(Asked) as asked:
            datasets.features_of(table, views)
        config.update(before)
        return str(asked.value)

    square = augment.Resizing("bilinear", 0.5, True)
    others = [
        store(resizing=square),
        store(resizing=square._replace(share=0.6)),
        store(resizing=square._replace(square=False)),
        store(boxed, resizing=square),
        store(boxed, resizing=square, **{"dataset.bounding_boxes": False}),
        store(**{"model.color": "0.7"}),
        store(views=2, **{"dataset.augment": ["crop"]}),
        store(views=2, **{"dataset.augment": ["flip"]}),
        store(views=2, **{"dataset.augment": ["crop"], "dataset.augment.smallest_crop": 0.3}),
        store(**{"model.default_image_dimensions": [24, 20, 3]}),
    ]
    assert store() == store() and len({store(), *others}) == 11


def test_a_head_on_cached_features_is_a_checkpoint_of_the_whole_network(config, tiny):
    # The decay must not reach the backbone, whose features would then be others.
    values = {"model.cached_features": True, "model.weight_decay": 0.1}
    prefix, saved = train(config, tiny, "head", **values)
    assert any(name.startswith("embedding/kernel/Adam") for name in checkpoints.shapes(prefix))
    assert {"recall@1", "recall@5"} <= set(meters.read_metrics(tiny / "head")[-1])
    # The features of a cached batch are those that the saved network computes of the pictures.
    table, _ = datasets.training_tables()
    with tf.Graph().as_default(), v1.Session() as session:
        pictures = v1.data.make_one_shot_iterator(datasets._every(table)).get_next()
        model = ranker.build(pictures)
        checkpoints.restore(session, prefix, v1.global_variables())
        found = session.run(model.features)
    kept = datasets._cached(table).values[0][: len(found), :6]
    np.testing.assert_allclose(found, kept, rtol=1e-4)


def test_step_0_compares_as_the_frozen_network_with_color_and_can_be_best(config, tiny):
    values = {"model.cached_features": True, "model.color": "0.7", "model.num_steps": 0}
    prefix, saved = train(config, tiny, "start", **values, **{"model.reduced_dimension": 600})
    passes = [line for line in meters.read_metrics(tiny / "start") if "examples" in line]
    assert [line["step"] for line in passes] == [0]
    assert experiment.locate(ranker, ())[1].endswith("best/model-0")
    assert np.isclose(saved.get_tensor("head/color_weight"), 0.7)
    table, _ = datasets.training_tables()
    kept = datasets._cached(table).values[0]
    joined = head.join(kept - saved.get_tensor("head/mean"), 6, 0.7)
    joined /= np.linalg.norm(joined, axis=1, keepdims=True)
    with tf.Graph().as_default(), v1.Session() as session:
        pictures = v1.data.make_one_shot_iterator(datasets._every(table)).get_next()
        model = ranker.build(pictures)
        checkpoints.restore(session, prefix, v1.global_variables())
        found = session.run(model.embeddings)
    # All float32: sums of 518 products of numbers below 1, twice.
    np.testing.assert_allclose(found @ found.T, (joined @ joined.T)[:8, :8], atol=1e-4)


def test_the_weight_of_color_is_auto_0_or_a_number(config, tiny):
    prefix, saved = train(config, tiny, "auto", **{"model.cached_features": True})
    assert float(saved.get_tensor("head/color_weight")) in head.WEIGHTS
    assert saved.get_tensor("head/mean").shape == (6 + 512,)
    config["model.color"] = "0"
    assert datasets._cached(datasets.training_tables()[0]).values.shape[2] == 6
    config["model.color"] = "much"
    with pytest.raises(UserError, match="model.color=much: give auto, 0, or a positive weight"):
        datasets.color_weight()


def test_an_evaluation_takes_kept_features_of_what_it_tests_and_of_nothing_else(
    config, tiny, monkeypatch
):
    prefix, _ = train(config, tiny, "head", **{"model.cached_features": True})
    embedded, embed = [], datasets.features.embed

    def computed(backbone, table, **options):
        embedded.append(set(table.splits))
        return embed(backbone, table, **options)

    monkeypatch.setattr(datasets.features, "embed", computed)
    found = datasets.datasets()
    assert {"trn", "vld", "retrieval_query", "retrieval_index"} == set(found)
    made = found["retrieval_query"]
    assert made.element_spec["image"].dtype == tf.uint8 and embedded == [{"test"}]
    with tf.Graph().as_default(), v1.Session() as session:
        batch = v1.data.make_one_shot_iterator(datasets.datasets()["retrieval_query"]).get_next()
        of_features = ranker.build(batch).embeddings
        of_images = {key: value for key, value in batch.items() if key != "features"}
        with v1.variable_scope("", reuse=True):
            of_images = ranker.build(of_images).embeddings
        checkpoints.restore(session, prefix, v1.global_variables())
        np.testing.assert_allclose(*session.run([of_features, of_images]), atol=1e-5)
    # A run that began with other weights may have another backbone than the one that is kept.
    config["model.weights_load_path"] = prefix
    assert "features" not in datasets.datasets()["retrieval_query"].element_spec


def test_cached_views_are_augmented(config, tiny):
    views = {"dataset.cached_views": 3, "dataset.augment": ["noise"]}
    shop(config, tiny, **views)
    values = datasets._cached(datasets.training_tables()[0]).values
    assert len(values) == 3
    assert np.abs(values[0] - values[1]).max() > 0 and np.abs(values[1] - values[2]).max() > 0


def test_filters_slow_or_freeze_the_backbone(config, tiny):
    def kernels(name, **values):
        saved = train(config, tiny, name, **{"model.num_steps": 1, **values})[1]
        return [saved.get_tensor(f"{scope}/kernel") for scope in ("tiny/conv", "embedding")]

    plain = kernels("plain")
    slow = kernels("slow", **{"model.learning_rate_factor": 0.1})
    regex = {"model.trainable_variables.filter_regex": "^embedding"}
    frozen = kernels("frozen", **regex, **{"model.learning_rate_factor": 1.0})
    moved = np.abs(plain[0] - frozen[0])
    assert moved.max() > 0
    np.testing.assert_allclose(np.abs(slow[0] - frozen[0]), 0.1 * moved, atol=0.01 * moved.max())
    for other in (slow, frozen):
        np.testing.assert_allclose(other[1], plain[1], atol=1e-6)


@pytest.mark.parametrize("cached", [False, True])
def test_the_frozen_backbone_is_offered_as_a_baseline(config, tiny, cached):
    """By its weights before training, whatever the checkpoint holds; cached, by those it has."""
    shop(config, tiny, **{"model.cached_features": cached})
    image = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3)).astype(np.uint8)
    with tf.Graph().as_default(), v1.Session() as session:
        v1.set_random_seed(1)
        inputs = {"image": tf.constant(image)}
        outputs = ranker.build(inputs)
        trained = {v.op.name for v in v1.global_variables()}
        frozen = ranker.frozen_features(inputs, outputs)
        more = [v for v in v1.global_variables() if v.op.name not in trained]
        assert bool(more) != cached and all(v.op.name.startswith("frozen/") for v in more)
        session.run(v1.global_variables_initializer())
        (kernel,) = [v for v in v1.global_variables() if v.op.name == "tiny/conv/kernel"]
        before = session.run(frozen)
        session.run(kernel.assign_add(tf.ones_like(kernel)))
        after, moved = session.run([frozen, outputs.features])
    assert np.abs(moved - before).max() > 0.1
    np.testing.assert_array_equal(after, moved if cached else before)


def test_features_take_the_embeddings_place_in_evaluation(config, tiny):
    shop(config, tiny, **{"evaluation.precision@k.feature_key": "features"})
    with tf.Graph().as_default():
        assert ranker.build()["embeddings"].shape[1] == 6
        v1.get_variable_scope().reuse_variables()
        inputs = {"image": tf.zeros([2, 24, 24, 3], tf.uint8)}
        assert ranker.build(inputs, train_phase=True)["embeddings"].shape[1] == 4
    shop(config, tiny, **{"evaluation.precision@k.feature_key": "embeddings"})
    config["model.reduced_dimension"] = 0
    with tf.Graph().as_default():
        assert ranker.build()["embeddings"].shape[1] == 6


def test_export_serves_what_the_configuration_names(config, tiny):
    names = ["embeddings", "features"]
    keys = {"actions.export.inputs": ["query"], "actions.export.outputs": names}
    train(config, tiny, "served", **keys, **{"model.num_steps": 0})
    options = types.SimpleNamespace(checkpoint=None, output=None, outputs=[], overwrite=False)
    export.main(options, ranker, set(), [])
    with v1.Session(graph=tf.Graph()) as session:
        folder = str(tiny / "served" / "export" / "model-0")
        signature = v1.saved_model.load(session, ["serve"], folder).signature_def
        served = signature["serving_default"]
        assert (list(served.inputs), sorted(served.outputs)) == (["query"], names)


def test_an_exported_model_has_one_input(config):
    config["actions.export.inputs"] = ["query", "catalogue"]
    with tf.Graph().as_default(), pytest.raises(UserError, match="inputs=query,catalogue: the"):
        ranker.build()
