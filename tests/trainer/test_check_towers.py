"""`--check_towers` accepts what towers do not change, and names what they do."""

import pytest
import tensorflow as tf
import toy

from trainer import towers
from trainer.check_towers import check_towers
from trainer.config import UserError


def test_a_model_that_towers_do_not_change(config, any_toy):
    config["trainer.num_towers"] = 4
    assert check_towers(any_toy, config)[-1] == "4 towers train like one"


def test_batch_norm_is_found_and_frozen(config):
    config["toy.norm"] = "batch"
    lines = check_towers(toy, config)
    assert "2 batch statistics" in lines[0] and lines[-1] == "2 towers train like one"


def test_a_model_that_mixes_the_batch_is_refused(config, monkeypatch):
    def build(inputs, train_phase):
        outputs = plain(inputs, train_phase)
        outputs.loss += tf.square(tf.reduce_mean(outputs.hidden))  # not a mean over examples
        return outputs

    plain = toy.build
    monkeypatch.setattr(toy, "build", build)
    with pytest.raises(UserError, match=r"2 towers do not train like one.*worst of 5: \S+"):
        check_towers(toy, config)


def test_from_the_command_line(program):
    code, out, err = program("trainer.main", "--model=toy", "--check_towers")
    assert code == 0 and "2 towers train like one" in out, err
    assert not (program.folder / "experiments").exists()


def test_the_check_sees_a_wrong_average(config, monkeypatch):
    monkeypatch.setattr(towers, "_mean", lambda parts, count: tf.add_n(parts))
    with pytest.raises(UserError, match="do not train like one"):
        check_towers(toy, config)
