"""Configuration: declared keys, types, flags, files."""

import json

import pytest

from trainer import config as config_lib
from trainer import schema
from trainer.config import Config, UserError


def double(x):
    return 2 * x


class Filters:
    @staticmethod
    def kernels(v):
        return v.shape.rank > 1


def test_declared_key_is_read_and_set():
    config = Config({"model.batch_size": 8})
    config.declare("model.margin", 0.2, "Margin.")
    config["model.margin"] = 1
    assert config["model.batch_size"] == 8
    assert config["model.margin"] == 1.0 and isinstance(config["model.margin"], float)


@pytest.mark.parametrize("use", [lambda c, k: c[k], lambda c, k: c.update({k: 1})])
def test_undeclared_key_names_the_nearest(use):
    with pytest.raises(UserError, match=r"'model.batchsize'.*Did you mean 'model.batch_size'"):
        use(Config(), "model.batchsize")


@pytest.mark.parametrize(
    "key, value",
    [
        ("model.batch_size", 1.5),
        ("model.batch_size", True),
        ("model.batch_size", "8"),
        ("model.clip_gradients", 1),
        ("model.ema_decay", "0.9"),
        ("model.lr_schedule.step.boundaries", [1.5]),
        ("model.lr_schedule.step.values", 0.1),
        ("model.trainable_variables.filter_fn", 3),
        ("model.trainable_variables.filter_fn", "no colon"),
    ],
)
def test_wrong_type_names_key_type_and_value(key, value):
    with pytest.raises(UserError) as error:
        Config()[key] = value
    kind = schema.KEYS[key].type
    assert repr(key) in str(error.value) and kind in str(error.value)
    assert repr(value) in str(error.value)


def test_value_outside_choices_names_the_nearest():
    with pytest.raises(UserError, match=r"'adam'.*not 'adma'.*Did you mean 'adam'"):
        Config()["model.optimizer.method"] = "adma"


def test_declaring_twice_is_refused():
    with pytest.raises(UserError, match="declared twice"):
        Config().declare("model.batch_size", 1, "Again.")


def test_json_restores_every_value_exactly():
    config = Config(
        {
            "model.lr_schedule.step.boundaries": [10, 20],
            "model.lr_schedule.step.values": [0.1, 0.01, 1e-17 / 3],
            "model.trainable_variables.filter_fn": Filters.kernels,
            "model.lr_schedule.custom.fn": double,
            "trainer.experiment_name": 'ü "quoted"\n',
        }
    )
    again = Config()
    again.restore(json.loads(config.to_json()))
    assert again.to_dict() == config.to_dict()
    assert again["model.lr_schedule.step.values"] == config["model.lr_schedule.step.values"]


def test_function_by_name_is_loaded_and_a_lambda_survives_a_restore():
    config = Config({"model.lr_schedule.custom.fn": "math:sqrt"})
    assert config["model.lr_schedule.custom.fn"](4) == 2
    config["model.lr_schedule.custom.fn"] = keep = lambda step: step
    config.restore(json.loads(config.to_json()))
    assert config["model.lr_schedule.custom.fn"] is keep
    config["model.lr_schedule.custom.fn"] = "math:sqart"
    with pytest.raises(UserError, match="math:sqart"):
        config["model.lr_schedule.custom.fn"]


def test_diff_names_what_changed():
    a, b = Config({"model.batch_size": 8}), Config({"model.num_steps": 7})
    assert config_lib.diff(a.to_dict(), b.to_dict()) == {
        "model.batch_size": (8, 64),
        "model.num_steps": (1000, 7),
    }


def test_seed_is_a_number_or_any_text():
    config = Config({"trainer.random_seed": 7})
    assert config["trainer.random_seed"] == "7"
    assert config_lib.seed_of("7") == 7
    assert config_lib.seed_of("pascal") == config_lib.seed_of("pascal") != config_lib.seed_of("voc")


def test_a_declared_range_holds_for_the_default_and_every_value():
    mine = Config()
    mine.declare("model.margins", [0.1], "Margins.", within="[0, 1]")
    with pytest.raises(UserError, match=r"'model.margins' must be in \[0, 1\], not 1.5"):
        mine["model.margins"] = [0.5, 1.5]
    with pytest.raises(UserError, match=r"'model.rate' must be in \(0, inf\), not 0.0"):
        mine.declare("model.rate", 0.0, "Rate.", within="(0, inf)")
    with pytest.raises(ValueError, match=r"'0 to 1' is not a range"):
        mine.declare("model.share", 0.5, "Share.", within="0 to 1")


@pytest.mark.parametrize("value", [10**30, -(10**30), 2**63])
def test_numbers_beyond_64_bits_are_refused(value):
    with pytest.raises(UserError, match="takes int"):
        Config()["model.num_steps"] = value
    with pytest.raises(UserError, match="takes float"):
        Config()["model.weight_decay"] = value


def test_an_optional_part_warns_and_does_not_stop(capsys):
    with config_lib.optional("the plots"):
        raise RuntimeError("no\n display")
    assert capsys.readouterr().err == "warning: without the plots (RuntimeError: no display)\n"
    with pytest.raises(KeyboardInterrupt), config_lib.optional("the plots"):
        raise KeyboardInterrupt
