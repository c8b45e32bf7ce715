"""`python -m trainer.sweep --model=M --grid='key=a,b' --search='key=log:1e-4:1e-2'`: tries values.

Every trial is an ordinary experiment, `<base_dir>/<experiment_name>-sweep/trial-<n>`, trained by
`python -m trainer.main`. Optuna chooses the values to search and prunes hopeless trials, from the
full validation passes in each trial's metrics.jsonl. Its study is in sweep.db (SQLite) beside them:
the same command resumes after a stop or a kill, half-trained trials included.
"""

import contextlib
import functools
import itertools
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable
from types import ModuleType
from typing import Any, NoReturn

from absl import flags

from trainer import quiet

quiet.import_tensorflow()

from trainer import checkpoints, experiment, files, flight, meters, signals, sweep_report  # noqa: E402
from trainer import config as config_lib  # noqa: E402 (after the quiet import)
from trainer.config import Config, UserError, optional, seed_of  # noqa: E402

PRUNERS = ("median", "halving", "none")
SECONDS = 0.2  # between two checks of the trials
_OWN = ("trainer.experiment_base_dir", "trainer.experiment_name", "trainer.best_metric")


def run(
    model: ModuleType,
    *,
    keys: dict[str, Any] | None = None,
    grid: dict[str, list[Any]] | None = None,
    search: dict[str, str] | None = None,
    trials: int | None = None,
    jobs: int = 1,
    metric: str | None = None,
    pruner: str = "median",
):
    """Trains a model with many configurations, each an experiment of its own.

    Args:
      model: the model module; the trials import it by name.
      keys: {key: value} that all trials share.
      grid: {key: list of values}: trials take every combination in turn.
      search: {key: what `parse_search` reads, such as 'log:1e-4:1e-2'}: values that Optuna chooses.
      trials: how many in all, including those of an earlier start; by default one per combination.
      jobs: how many train side by side.
      metric: figure of the full validation pass, with `min:` or `max:` in front to state what is
        better (see `meters.direction`); by default `trainer.best_metric`, or else loss.
      pruner: one of `PRUNERS`.

    Returns:
      The `optuna.Study`; a trial's value is its best full validation pass.

    Raises:
      UserError: a key cannot be swept, or no trial could train; it quotes the first one's error.
    """
    optuna = _optuna()
    config = model.config.copy()
    config.update(keys or {})
    points, space = _space(optuna, config, grid or {}, search or {}, set(keys or ()))
    if trials is None and search:
        raise UserError("Give --trials: a search does not end by itself.")
    trials = trials or len(points)
    metric = metric or config["trainer.best_metric"] or "loss"
    shared = {key: config_lib.to_text(config.to_dict()[key]) for key in sorted(keys or ())}
    shared |= config.own_flags | {"trainer.best_metric": metric}
    if not config["trainer.evaluation_interval"] and "trainer.evaluation_interval" not in space:
        shared["trainer.evaluation_interval"] = str(max(config["model.num_steps"] // 10, 1))
    metric, lower = meters.direction(metric)
    folder = f"{os.path.abspath(experiment.directory(config))}-sweep"
    spec = {
        "model": model.__name__,
        "shared": {key: value for key, value in shared.items() if key not in _OWN},
        "space": {key: optuna.distributions.distribution_to_json(d) for key, d in space.items()},
        "metric": metric,
    }
    with _opened(folder), signals.graceful() as stop_requested:
        seed = seed_of(config["trainer.random_seed"])
        study = _open_study(optuna, folder, spec, seed, pruner, lower)
        running, waiting = {}, [t for t in study.get_trials() if t.state.name == "RUNNING"]
        try:
            while not stop_requested():
                while len(running) < jobs and (waiting or _begun(study) < trials):
                    left = waiting.pop(0) if waiting else None
                    trial = _ask(optuna, study, space, points, left)
                    slot = min(set(range(jobs)) - set(running))
                    gpus = _devices(slot, jobs)
                    running[slot] = _Trial(trial, model, config, shared, folder, gpus)
                    if left:
                        running[slot].known(left.intermediate_values)
                if not running:
                    break
                time.sleep(SECONDS)
                for slot in [s for s, trial in running.items() if trial.look(study, metric)]:
                    del running[slot]
        finally:
            for trial in running.values():
                trial.stop()
            for trial in running.values():
                trial.wait()
        if stop_requested():
            print(f"stopped ({stop_requested()}): the same command resumes {folder}", flush=True)
        with optional("the report of the sweep"):
            sweep_report.write(study, folder, config, spec)
        with optional("TensorBoard's HParams"):
            sweep_report.write_hparams(study, folder, config, spec)
        return study


# ---------------------------------------------------------------------------- what to try


def parse_grid(config: Config, items: Iterable[str]) -> dict[str, list[Any]]:
    """Reads `key=value,value` texts; values of a list key are separated by `;`.

    Returns:
      {key: list of values}.
    """
    return {
        name: _choices(config.key(name), text, "--grid")
        for name, text in _pairs(items, "--grid").items()
    }


def parse_search(config: Config, name: str, text: str):
    """Reads the search space of a key: `[log:]low:high[:step]` of a number, else `value,value`.

    Returns:
      An Optuna distribution. Choices are kept as the text of a flag.
    """
    distributions = _optuna().distributions
    key = config.key(name)
    if key.type not in ("int", "float") or ":" not in text:
        values = _choices(key, text, "--search")
        return distributions.CategoricalDistribution([config_lib.to_text(v) for v in values])
    bounds = text.split(":")
    log = bounds[0].strip() == "log"
    bounds = bounds[1:] if log else bounds
    try:
        low, high, *step = (config_lib.from_text(key, bound) for bound in bounds)
        if len(step) > 1:
            raise ValueError(f"has {len(bounds)} numbers")
        make = {"int": distributions.IntDistribution, "float": distributions.FloatDistribution}
        options = {"step": step[0]} if step else {}
        return make[key.type](low, high, log=log, **options)
    except ValueError as error:
        raise UserError(
            f"--search: {name}={text} is not a range ({str(error).rstrip('.')}); write low:high, "
            "low:high:step or log:low:high."
        ) from None


def _pairs(items, flag):
    """Returns {key: text} of `key=text` items."""
    found = {}
    for item in items:
        name, equals, text = (part.strip() for part in item.partition("="))
        if not equals or not text:
            raise UserError(f"{flag}={item}: write key=value,value.")
        if name in found:
            raise UserError(f"{flag}={item}: {name!r} is given twice.")
        found[name] = text
    return found


def _choices(key, text, flag):
    parts = [part.strip() for part in text.split(";" if key.type.startswith("list(") else ",")]
    try:
        return [config_lib.from_text(key, p) for p in parts if p or key.type == "str"]
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{flag}: {key.name}={text}: {error}.") from None


def _space(optuna, config, grid, search, fixed):
    """Returns ([{key: text} per combination of the grid], {key: distribution})."""
    for name in (*grid, *search):
        config.key(name)
        if name in _OWN or name in fixed or (name in grid and name in search):
            why = "is set by the sweep" if name in _OWN else "is given twice"
            raise UserError(f"Config key {name!r} {why}: it cannot be swept.")
    texts = {}
    for name, values in grid.items():
        probe = config.copy()
        for value in values:
            probe[name] = value
        texts[name] = [config_lib.to_text(value) for value in values]
        if not values or len(set(texts[name])) < len(texts[name]):
            raise UserError(f"--grid: {name} needs different values, not {texts[name]}.")
    if not texts and not search:
        raise UserError("Give --grid='key=value,value' or --search='key=low:high'.")
    space = {
        name: optuna.distributions.CategoricalDistribution(values) for name, values in texts.items()
    } | {name: parse_search(config, name, text) for name, text in search.items()}
    combinations = itertools.product(*texts.values())
    points = [dict(zip(texts, values, strict=True)) for values in combinations]
    return points, space


def _optuna():
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError("A sweep needs Optuna: pip install 'prototrain[sweep]'.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


# ---------------------------------------------------------------------------- the study


@contextlib.contextmanager
def _opened(folder):
    """Creates and marks the sweep's folder, and holds its lock."""
    with contextlib.ExitStack() as held:
        try:
            files.claim(folder, "sweep", earlier=_of_an_earlier_version)
            held.enter_context(files.only_writer(folder))
        except BlockingIOError as error:
            raise UserError(f"{folder}: {error.strerror}, or stop it.") from None
        except OSError as error:
            raise UserError(f"Cannot write to {folder}: {error.strerror}.") from None
        except ValueError as error:
            raise UserError(str(error)) from None
        with _database_errors(os.path.join(folder, "sweep.db")):
            yield


@contextlib.contextmanager
def _database_errors(path):
    """Turns an error of the database, such as a full disk or damage, into a `UserError`."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).splitlines()[0]
        raise UserError(
            f"{path}: cannot be read or written ({reason}). Free space if the disk is full; if the "
            "file is damaged, move it away to begin anew."
        ) from None


def _of_an_earlier_version(folder):
    try:
        with open(os.path.join(folder, "sweep.db"), "rb") as database:
            return database.read(15) == b"SQLite format 3"
    except OSError:
        return False


def _open_study(optuna, folder, spec, seed, pruner, lower):
    """Creates or continues the study in <folder>/sweep.db."""
    path = os.path.join(folder, "sweep.db")
    # The path goes to SQLite as it is: in a URL, `?` and `%` would mean something else.
    connect = {"creator": lambda: sqlite3.connect(path, check_same_thread=False)}
    study = optuna.create_study(
        storage=optuna.storages.RDBStorage("sqlite:///sweep.db", engine_kwargs=connect),
        study_name="sweep",
        direction="minimize" if lower else "maximize",
        load_if_exists=True,
        pruner={
            "median": optuna.pruners.MedianPruner(n_startup_trials=4),
            "halving": optuna.pruners.SuccessiveHalvingPruner(),
            "none": optuna.pruners.NopPruner(),
        }[pruner],
    )
    before = study.user_attrs.get("spec")
    if before is None:
        study.set_user_attr("spec", spec)
    elif before != spec:
        flat = [
            {**{k: v for k, v in s.items() if isinstance(v, str)}, **s["shared"], **s["space"]}
            for s in (before, spec)
        ]
        changes = config_lib.diff(*flat)
        lines = "; ".join(f"{key}: {old} -> {new}" for key, (old, new) in changes.items())
        raise UserError(
            f"The sweep in {folder} began differently ({lines}). Use another "
            "--trainer.experiment_name, or delete that folder."
        )
    # A resumed search must not draw its first values again.
    study.sampler = optuna.samplers.TPESampler(seed=(seed + len(study.trials)) % 2**31)
    return study


def _begun(study):
    return sum(t.state.name != "WAITING" for t in study.get_trials(deepcopy=False))


def _ask(optuna, study, space, points, running=None):
    """Returns an `optuna.Trial` with all its values: a new one, or one that was interrupted."""
    if running is None:
        known = study.get_trials(deepcopy=False)
        if points[0] and not any(t.state.name == "WAITING" for t in known):
            study.enqueue_trial(points[len(known) % len(points)])
        return study.ask(space)
    trial = optuna.Trial(study, running._trial_id)
    for name, d in space.items():  # returns stored values; a kill may have prevented that
        if isinstance(d, optuna.distributions.CategoricalDistribution):
            trial.suggest_categorical(name, d.choices)
        else:
            number = trial.suggest_int if type(d.low) is int else trial.suggest_float
            number(name, d.low, d.high, step=d.step, log=d.log)
    return trial


def _devices(slot, jobs):
    """Divides the GPUs that CUDA_VISIBLE_DEVICES names among the jobs."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[slot::jobs])} if len(names) >= jobs > 1 else {}


# ---------------------------------------------------------------------------- one trial


def _command(model, keys):
    # -P: PYTHONPATH is this process's path; the current folder must not come before it.
    program = [sys.executable, "-P", "-m", "trainer.main", f"--model={model.__name__}"]
    return [*program, *(f"--{name}={text}" for name, text in keys.items())]


class _Trial:
    """The process of one trial, and the figures read from it so far."""

    def __init__(self, trial, model, config, shared, folder, environment):
        self._trial, self._name = trial, f"trial-{trial.number:03}"
        self._folder, self._log = (os.path.join(folder, self._name + end) for end in ("", ".log"))
        keys = shared | {name: config_lib.to_text(value) for name, value in trial.params.items()}
        keys |= {"trainer.experiment_base_dir": folder, "trainer.experiment_name": self._name}
        self._command = _command(model, keys)
        path = os.pathsep.join(p for p in sys.path if p)
        self._environment = os.environ | {"PYTHONPATH": path} | environment
        self._config = config
        self._process, self._pruned, self._size, self._values = None, False, -1, {}
        trial.set_user_attr("experiment", self._folder)
        self._say("; ".join(f"{name}={value}" for name, value in trial.params.items()))

    def look(self, study, metric):
        """Reports new figures, prunes; returns whether the trial has ended."""
        if self._process is None:
            # A trainer that outlived a killed sweep continues; its trial is resumed afterwards.
            if not files.locked(self._folder):
                with open(self._log, "a", encoding="utf-8") as log:
                    # A session of its own: Ctrl-C reaches it once, through stop().
                    self._process = subprocess.Popen(
                        self._command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        env=self._environment,
                        start_new_session=True,
                    )
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
        if code == 0:  # this trainer was stopped: the next start of the sweep resumes it
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


# ---------------------------------------------------------------------------- the program


def define_flags(values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    text, many, number, choice = config_lib.definers(
        values, "string", "multi_string", "integer", "enum"
    )
    text("model", None, "Model to train: a module name.", short_name="m")
    many("grid", [], "key=value,value (value;value if the key is a list): every combination.")
    many("search", [], "key=low:high, key=low:high:step, key=log:low:high or key=value,value.")
    number("trials", None, "Trials in all.", lower_bound=1)
    number("jobs", 1, "Trials that train side by side.", lower_bound=1)
    text(
        "metric",
        None,
        "Validation figure to improve, min:NAME or max:NAME to state what is better; by default "
        "trainer.best_metric, or else loss.",
    )
    choice("pruner", "median", PRUNERS, "What stops a hopeless trial early.")


def main(options: flags.FlagValues, model: ModuleType, given: set[str], rest: list[str]) -> int:
    """The program, for `trainer.config.run`."""
    config_lib.no_arguments(rest)
    study = run(
        model,
        keys={name: model.config.to_dict()[name] for name in given},
        grid=parse_grid(model.config, options.grid),
        search=_pairs(options.search, "--search"),
        trials=options.trials,
        jobs=options.jobs,
        metric=options.metric,
        pruner=options.pruner,
    )
    sweep_report.show(study)
    return 0


def start(argv: list[str] | None = None) -> NoReturn:
    """Runs the program on a command line, `sys.argv` by default."""
    options = flags.FlagValues()
    define_flags(options)
    config_lib.run(
        functools.partial(main, options),
        argv,
        "stopped: the same command resumes",
        flag_values=options,
    )


if __name__ == "__main__":
    start()
