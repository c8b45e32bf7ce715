"""Training from Python, in a script or a notebook:

import trainer

run = trainer.train("models.simple", **{"model.num_steps": 400})
print(run.folder, run.metrics[-1])
run.evaluate()
"""

import contextlib
import dataclasses
import importlib
import os
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from trainer import commandline, experiment, meters
from trainer import config as config_lib


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
      model: the model's module.
      folder: absolute path of the experiment.
      step: number of completed updates.
    """

    model: ModuleType
    folder: str
    step: int

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: {"split": 'trn' or 'vld', "step": …, "loss": …, …}.

        `pandas.DataFrame(run.metrics)` makes a table.
        """
        return meters.read_metrics(self.folder)

    def evaluate(self, **options: Any) -> Any:
        """Evaluates the run on the model's test data; see `retrieval.evaluate`."""
        # Retrieval depends on this package; like a model, it is imported by name.
        return importlib.import_module("retrieval").evaluate(self, **options)


def train(
    model: str | ModuleType,
    *,
    fresh: bool = False,
    allow_config_change: bool = False,
    fallback: bool = False,
    **config: Any,
) -> Run:
    """Trains a model, from its experiment's last checkpoint if there is one.

    Args:
      model: a module's name, such as 'models.ranker', or the module.
      fresh: delete an earlier run of this experiment first, without asking.
      allow_config_change: resume even though the configuration makes a different run.
      fallback: set damaged checkpoints aside and resume from the newest undamaged one.
      **config: keys of the model's configuration and their values, only for this run:
        `**{"model.num_steps": 400}`.

    Returns:
      The run.

    Raises:
      UserError: any error that the user can fix.
    """
    module = commandline.load_model(model) if isinstance(model, str) else model
    from trainer import loop  # imports TensorFlow

    with overridden(module.config, config):
        step = loop.train(
            module,
            module.config,
            fresh=fresh,
            yes=fresh,
            allow_config_change=allow_config_change,
            fallback=fallback,
        )
        return Run(module, os.path.abspath(experiment.directory(module.config)), step)


@contextlib.contextmanager
def overridden(config: config_lib.Config, values: Mapping[str, Any]) -> Iterator[None]:
    """Sets keys of a configuration, and restores their values at the end."""
    before = {name: config[name] for name in values}
    given = set(config.given)
    try:
        config.update(values)
        config.given |= values.keys()
        yield
    finally:
        config.update(before)
        config.given = given
