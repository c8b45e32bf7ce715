"""A user's own action."""

import types

import pytest

from trainer import run
from trainer.config import UserError

ACTION = """
from absl import flags

flags.DEFINE_integer("limit", 1, "How many.")

def run(model, config):
    print(model.__name__, config["model.num_steps"], config["toy.dropout"], flags.FLAGS.limit)
    return 3
"""


def test_an_action_gets_the_model_as_its_experiment_was_configured(program, tmp_path, train):
    train(keys={"model.num_steps": 7, "toy.dropout": 0.5})
    (tmp_path / "my_action.py").write_text(ACTION)
    code, out, err = program(
        "trainer.run", "--model=toy", "--action=my_action", "--toy.dropout=0.25", "--limit=9"
    )
    assert (code, out, err) == (3, "toy 7 0.25 9\n", "")


def test_what_is_no_action_is_named(monkeypatch):
    with pytest.raises(UserError, match="Give an action: --action=package.module"):
        run.load_action(None)
    with pytest.raises(UserError, match="--action=my_acton: no module named 'my_acton'"):
        run.load_action("my_acton")
    with pytest.raises(UserError, match=r"--action=json: the module has no run\(model, config\)"):
        run.load_action("json")
    near = types.SimpleNamespace(runs=print)
    monkeypatch.setattr(run.commandline, "load_module", lambda name, flag: near)
    with pytest.raises(UserError, match="Did you mean 'runs'"):
        run.load_action("near")
