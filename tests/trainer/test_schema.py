"""The shared keys: documented, in range, and each with an effect."""

import importlib
import pathlib

import pytest
import tensorflow as tf
import toy

from trainer import optimizers, schedules, schema, summaries, towers
from trainer.config import Config, UserError

v1 = tf.compat.v1
ROOT = pathlib.Path(__file__).parents[2]


def table_of_keys():
    """The table of docs/configuration.md, in Markdown."""
    lines = []
    for title, keys in schema.SECTIONS.items():
        lines += [f"### {title}", "", "| dtype | setting | default | range | description |"]
        lines.append("|---|---|---|---|---|")
        for key in keys:
            default = "" if key.default in (None, "", []) else f"`{key.default}`"
            within = f"`{key.within}`" if key.within else ""
            doc = key.doc.replace("|", "\\|")
            if key.choices:
                doc += " One of " + ", ".join(f"`{c}`" for c in key.choices if c) + "."
            lines.append(f"| `{key.type}` | `{key.name}` | {default} | {within} | {doc} |")
        lines.append("")
    return "\n".join(lines)


def test_the_guide_lists_every_key_as_the_code_declares_it():
    assert table_of_keys() in (ROOT / "docs" / "configuration.md").read_text()


@pytest.mark.parametrize(
    "within, inside, outside",
    [
        ("[0, inf)", [0, 0.5, 10**9], [-1, -1e-9, float("inf"), float("nan")]),
        ("(0, 1]", [1e-9, 1], [0, 1.1, float("nan")]),
        ("[-inf, inf]", [float("-inf"), 3], [float("nan")]),
        ("", [5, "text", True, None, float("nan")], []),
    ],
)
def test_ranges(within, inside, outside):
    assert all(schema.inside(value, within) for value in inside)
    assert not any(schema.inside(value, within) for value in outside)


@pytest.mark.parametrize(
    "key, value",
    [
        ("trainer.num_towers", -2),
        ("model.ema_decay", 1.5),
        ("model.ema_decay", 1.0),
        ("model.num_steps", -1),
        ("model.batch_size", 0),
        ("model.lr_schedule.constant.value", -0.1),
        ("model.lr_schedule.step.values", [0.1, -0.1]),
        ("model.optimizer.msgd.momentum", 1.0),
        ("model.optimizer.msgd.momentum", float("nan")),
        ("model.clip_gradients.minval", float("nan")),
        ("trainer.max_checkpoints_to_keep", 0),
        ("trainer.profile_steps", [0, 5]),
    ],
)
def test_a_value_out_of_range_names_key_and_range(key, value):
    with pytest.raises(UserError) as error:
        Config()[key] = value
    assert f"{key!r} must be in {schema.KEYS[key].within}, not" in str(error.value)


@pytest.mark.parametrize("module", ["models.simple", "models.ranker"])
def test_every_number_has_a_range(module):
    config = importlib.import_module(module).config
    for key in map(config.key, config):
        if key.type in ("int", "float", "list(int)", "list(float)"):
            assert key.within, key.name
            for value in key.default if isinstance(key.default, list) else [key.default]:
                assert schema.inside(value, key.within), key.name


# ---------------------------------------------------------------------------- every key's effect


def halved(step):
    return 0.5 ** tf.cast(step, tf.float32)


def no_bias(variable):
    return "bias" not in variable.op.name


def graph(config):
    """The update as the loop builds it: trained, decayed and clipped variables, rate, optimizer."""
    with tf.Graph().as_default() as g:
        batch = {"x": v1.placeholder(tf.float32, [16, 4]), "y": v1.placeholder(tf.float32, [16])}
        step = v1.train.create_global_step()
        replicas = towers.replicate(toy.build, batch, ["/cpu:0"], train_phase=True, step=step)
        outputs = towers.gather(replicas)
        loss, _ = towers.loss_of(toy, replicas, outputs)
        trained = towers.select(v1.trainable_variables(), config, "model.trainable_variables")
        decayed = towers.decayed(trained, config)
        penalty = None
        if config["model.optimizer.method"] not in optimizers.DECOUPLED:
            penalty = towers.l2_loss(decayed, config)
        pairs = towers.gradients(toy, replicas, loss, trained, ["/cpu:0"])
        pairs = towers.add_penalty(pairs, penalty, trained)
        rate = schedules.create(config, step)
        optimizers.create(config, rate, decayed).apply_gradients(towers.clip(pairs, config), step)
        image = {"image": tf.zeros([1, 4, 4, 3])}
        summaries.merged({"loss": loss}, image, outputs, pairs, config)
        return g.as_graph_def()


def session(config):
    return towers.session_config(config, towers.devices(config["trainer.num_towers"]))


REGEX = "kernel"
# {key: (a value, what else is set)}; the graph must differ from that of the key's default.
GRAPH = {
    "trainer.summary_histograms": (True, {}),
    "trainer.summary_images": (False, {}),
    "model.num_steps": (7, {"model.lr_schedule.method": "cosine"}),
    "model.trainable_variables.filter_fn": (no_bias, {}),
    "model.trainable_variables.filter_regex": (REGEX, {}),
    "model.weight_decay": (0.1, {}),
    "model.weight_decay.filter_fn": (no_bias, {"model.weight_decay": 1.0, "toy.norm": "batch"}),
    "model.weight_decay.filter_regex": ("bias", {"model.weight_decay": 1.0}),
    "model.learning_rate_factor": (0.1, {}),
    "model.learning_rate_factor.filter_fn": (no_bias, {"model.learning_rate_factor": 0.5}),
    "model.learning_rate_factor.filter_regex": (REGEX, {"model.learning_rate_factor": 0.5}),
    "model.clip_gradients": (True, {}),
    "model.clip_gradients.minval": (-0.5, {"model.clip_gradients": True}),
    "model.clip_gradients.maxval": (0.5, {"model.clip_gradients": True}),
    "model.clip_gradients.global_norm": (1.0, {}),
    "model.optimizer.method": ("adam", {}),
    "model.lr_schedule.method": ("cosine", {}),
    "model.lr_schedule.warmup_steps": (3, {}),
    "model.lr_schedule.step.boundaries": ([5], {"model.lr_schedule.step.values": [1.0]}),
    "model.lr_schedule.step.values": ([0.1, 0.01], {"model.lr_schedule.step.boundaries": [5]}),
    "model.lr_schedule.custom.fn": (halved, {}),
}
for _key in (*schema.OPTIMIZER, *schema.SCHEDULE):
    if isinstance(_key.default, bool):
        GRAPH.setdefault(_key.name, (not _key.default, {}))
    elif isinstance(_key.default, float):
        GRAPH.setdefault(_key.name, (_key.default / 2 + 0.001, {}))
SESSION = {
    "trainer.num_towers": 3,
    "trainer.mixed_precision": "bfloat16",
    "trainer.xla": True,
    "trainer.intra_op_threads": 3,
    "trainer.inter_op_threads": 3,
}
# Keys whose effect a test of the loop, the checkpoints or the meters observes.
ELSEWHERE = {
    "test_experiment.py::test_a_home_folder_is_expanded": (
        "trainer.experiment_base_dir",
        "trainer.experiment_name",
    ),
    "test_loop.py::test_an_interval_of_0_means_never": (
        "trainer.validation_step_interval",
        "trainer.summary_save_interval",
        "trainer.print_interval",
    ),
    "test_api.py::test_a_logger_gets_every_line": ("trainer.log",),
    "test_loop.py::test_what_a_run_writes": ("trainer.evaluation_interval",),
    "test_loop.py::test_steps_are_completed_updates": ("trainer.checkpoint_save_interval",),
    "test_loop.py::test_best_checkpoint_and_early_stopping": (
        "trainer.max_checkpoints_to_keep",
        "trainer.best_metric",
        "trainer.early_stopping_patience",
    ),
    "test_loop.py::test_the_same_seed_gives_the_same_run_and_another_does_not": (
        "trainer.random_seed",
    ),
    "test_loop.py::test_a_profile_of_some_steps_is_written_for_tensorboard": (
        "trainer.profile_steps",
    ),
    "test_cluster.py::test_a_frozen_worker_or_chief_is_found_by_the_timeout": (
        "trainer.cluster_timeout",
    ),
    "test_optimizers.py::test_blocks_nearer_the_images_learn_more_slowly": ("model.layer_decay",),
    "test_optimizers.py::test_the_head_learns_first_then_the_network_warms_up": (
        "model.learning_rate_factor.from_step",
    ),
    "test_loop.py::test_weights_of_another_experiment": ("model.weights_load_path",),
    "test_data.py::test_a_batch_of_another_size_is_refused": ("model.batch_size",),
    "test_loop.py::test_accumulated_batches_train_like_one_large_batch": (
        "model.gradient_accumulation_steps",
    ),
    "test_export.py::test_served_outputs_equal_the_checkpoint_at_any_batch_size": (
        "model.ema_decay",
    ),
}


def test_every_key_is_in_one_of_the_tables():
    elsewhere = [key for keys in ELSEWHERE.values() for key in keys]
    assert sorted([*GRAPH, *SESSION, *elsewhere]) == sorted(schema.KEYS)
    for test in ELSEWHERE:
        file, name = test.split("::")
        assert f"def {name}(" in (pathlib.Path(__file__).parent / file).read_text(), test


@pytest.mark.parametrize("key", GRAPH)
def test_a_key_changes_the_graph(config, key):
    value, others = GRAPH[key]
    if needs := schema.KEYS[key].needs:
        name, _, text = needs.partition("=")
        others = {name: text, **others} if text and "!" not in needs else others
    config.update({"toy.dropout": 0.0, **others})
    if key == "model.lr_schedule.step.boundaries":
        default = graph(config)
        config["model.lr_schedule.step.values"] = [1.0, 1.0]
    elif key == "model.lr_schedule.step.values":
        config[key] = [0.2, 0.02]
        default = graph(config)
    elif key == "model.lr_schedule.custom.fn":
        with pytest.raises(UserError, match=key):
            graph(config)
        default = None
    else:
        config[key] = schema.KEYS[key].default
        default = graph(config)
    config[key] = value
    assert graph(config) != default


def test_the_graph_of_the_same_values_is_the_same(config):
    assert graph(config) == graph(config)


@pytest.mark.parametrize("key", SESSION)
def test_a_key_changes_the_session(config, key):
    default = session(config)
    config[key] = SESSION[key]
    assert session(config) != default


@pytest.mark.parametrize(
    "given, keys, expected",
    [
        ((), {"model.weight_decay.filter_regex": "x"}, ["model.weight_decay"]),
        ((), {"model.weight_decay.filter_regex": "x", "model.weight_decay": 1.0}, []),
        ((), {"model.learning_rate_factor.filter_fn": no_bias},
         ["model.learning_rate_factor!=1.0"]),
        (("model.optimizer.adam.beta1",), {"model.optimizer.adam.beta1": 0.5},
         ["model.optimizer.method=adam"]),
        ((), {"model.optimizer.adam.beta1": 0.5}, []),  # a model's own options for another method
        (("trainer.best_metric",), {"trainer.best_metric": "loss"},
         ["trainer.evaluation_interval"]),
        (("model.clip_gradients.maxval",), {"model.clip_gradients.maxval": 2.0},
         ["model.clip_gradients"]),
    ],
)  # fmt: skip
def test_a_key_that_cannot_take_effect_is_named(given, keys, expected):
    config = Config(keys)
    config.given = set(given)
    found = config.without_effect()
    assert [text.partition(" without ")[2] for text in found] == [f"{e}." for e in expected]
    assert all(text.startswith(tuple(keys)) for text in found)
