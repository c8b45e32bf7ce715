"""A trial of a sweep: its training process, and its figures so far."""

import math
import os
import signal
from types import ModuleType
from typing import Any

from trainer import checkpoints, engines, experiment, files, flight, meters
from trainer import config as config_lib
from trainer.config import Config, UserError


def _command(model, keys):
    flags = (f"--{name}={text}" for name, text in keys.items())
    return engines.trainer_command(f"--model={model.__name__}", *flags)


class Trial:
    """A trial.

    Args:
      trial: an `optuna.Trial`.
      model: the model module.
      config: the sweep's `Config`.
      shared: {key: text} that all trials share.
      folder: the sweep's folder; the trial is an experiment in it.
      seat: the seat of its process, see `engines`.
    """

    def __init__(
        self,
        trial: Any,
        model: ModuleType,
        config: Config,
        shared: dict[str, str],
        folder: str,
        seat: Any,
    ):
        self._trial, self._name = trial, f"trial-{trial.number:03}"
        self._folder, self._log = (os.path.join(folder, self._name + end) for end in ("", ".log"))
        keys = shared | {name: config_lib.to_text(value) for name, value in trial.params.items()}
        keys |= {"trainer.experiment_base_dir": folder, "trainer.experiment_name": self._name}
        self._command, self._seat = _command(model, keys), seat
        self._config = config
        self._process, self._pruned, self._size, self._values = None, False, -1, {}
        trial.set_user_attr("experiment", self._folder)
        self._say("; ".join(f"{name}={value}" for name, value in trial.params.items()))

    def look(self, study, metric):
        """Reports new figures, prunes; returns whether the trial has ended."""
        if self._process is None:
            # A trainer of a killed sweep may still be running; its trial is resumed afterwards.
            if not files.locked(self._folder):
                self._process = self._seat.start(self._command, {}, self._log, outlives=True)
            return False
        code = self._process.poll()
        news = self._read(metric)
        if code is None:
            if news and not self._pruned and self._trial.should_prune():
                self._pruned = True
                self._process.send_signal(signal.SIGTERM)
            return False
        if code and files.locked(self._folder):
            self._process = None
            return False
        self._tell(study, metric, code)
        return True

    def known(self, values):
        """Adds {step: value} that an earlier start has reported."""
        self._values.update(values)

    def stop(self):
        """Asks the trainer to save and stop."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self):
        if self._process:
            self._process.wait()

    def _read(self, metric):
        """Reports full passes written since the last check; returns whether there were any."""
        path, known = os.path.join(self._folder, "metrics.jsonl"), len(self._values)
        size = os.path.getsize(path) if os.path.exists(path) else -1
        if size == self._size:
            return False
        self._size = size
        for line in meters.read_metrics(self._folder):
            value = line.get(metric)
            if "examples" in line and value is not None and math.isfinite(value):
                if line["step"] not in self._values:
                    self._trial.report(value, line["step"])
                self._values[line["step"]] = value
        return len(self._values) > known

    def _tell(self, study, metric, code):
        best = self._best(study)
        if code == 0 and best is not None and self._finished():
            study.tell(self._trial, best)
            return self._say(f"done, {metric} {best:.4g}")
        if self._pruned:
            study.tell(self._trial, state=_state("PRUNED"))
            return self._say(f"pruned at step {max(self._values)}, {metric} {best:.4g}")
        if code == 0 and self._finished():
            raise UserError(f"{self._name} has no {metric!r} in its validation; see {self._log}.")
        if code == 0:  # the trainer was stopped: the next start of the sweep resumes it
            return self._say("was stopped; the next start of the sweep resumes it")
        error = self._error() if code > 0 else f"killed by signal {-code}"
        self._trial.set_user_attr("error", error)
        study.tell(self._trial, state=_state("FAIL"))
        self._say(f"failed: {error}")
        worked = any(t.intermediate_values for t in study.get_trials(deepcopy=False))
        if not worked and flight.NOT_FINITE not in error:
            raise UserError(f"No trial could train; the log is {self._log}. {error}")

    def _best(self, study):
        better = min if study.direction.name == "MINIMIZE" else max
        return better(self._values.values(), default=None)

    def _finished(self):
        config = self._config.copy()
        config.restore(experiment.read_config(self._folder) or {})
        last = checkpoints.latest(os.path.join(self._folder, "checkpoint"))
        if last and checkpoints.step_of(last) >= config["model.num_steps"]:
            return True
        return meters.Best(self._folder, config).stalled()

    def _error(self):
        with open(self._log, encoding="utf-8", errors="replace") as log:
            lines = [line.strip() for line in log if line.strip()]
        return lines[-1].removeprefix("error: ") if lines else "it wrote nothing"

    def _say(self, text):
        print(f"{self._name}: {text}", flush=True)


def _state(name):
    import optuna

    return optuna.trial.TrialState[name]
