"""`python -m trainer.sweep --model=M --grid='key=a,b' --search='key=log:1e-4:1e-2'`: a sweep.

Every trial is an ordinary experiment, `<base_dir>/<experiment_name>-sweep/trial-<n>`, trained by
`python -m trainer.main`. Optuna chooses values and prunes bad trials by the full validation passes
in each trial's metrics.jsonl. Its study is in sweep.db (SQLite) beside the trials: after a stop or
a kill, the same command resumes the sweep and unfinished trials.
"""

import contextlib
import functools
import itertools
import os
import sqlite3
import time
from collections.abc import Iterable
from types import ModuleType
from typing import Any, NoReturn

from absl import flags

from trainer import commandline, program, quiet

quiet.import_tensorflow()

from trainer import config as config_lib  # noqa: E402 (after the quiet import)
from trainer import engines, experiment, files, meters, signals, sweep_report  # noqa: E402
from trainer.config import Config, UserError, optional, seed_of  # noqa: E402
from trainer.trials import Trial  # noqa: E402

PRUNERS = ("median", "halving", "none")
SECONDS = 0.2  # seconds between checks of the trials
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
    engine: str = "local",
    gpus: int = 0,
):
    """Trains a model with many configurations; each is a separate experiment.

    Args:
      model: the model module; the trials import it by name.
      keys: {key: value} that all trials share.
      grid: {key: list of values}: trials take every combination in turn.
      search: {key: argument of `parse_search`, such as 'log:1e-4:1e-2'}: values that Optuna
        chooses.
      trials: total number, including those of an earlier start; default: one per combination.
      jobs: number of trials that run at the same time.
      metric: figure of the full validation pass; a prefix `min:` or `max:` states what is better
        (see `meters.direction`). Default: `trainer.best_metric`, otherwise loss.
      pruner: one of `PRUNERS`.
      engine: a key of `engines.ENGINES`. On Ray, all nodes must see the experiments' folder.
      gpus: GPUs per trial, for Ray.

    Returns:
      The `optuna.Study`; a trial's value is its best full validation pass.

    Raises:
      UserError: a key cannot be swept, or no trial could train; it quotes the first trial's error.
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
    with (
        _opened(folder),
        engines.ENGINES[engine](jobs, gpus) as seats,
        signals.graceful() as stop_requested,
    ):
        seed = seed_of(config["trainer.random_seed"])
        study = _open_study(optuna, folder, spec, seed, pruner, lower)
        running, waiting = {}, [t for t in study.get_trials() if t.state.name == "RUNNING"]
        try:
            while not stop_requested():
                while len(running) < jobs and (waiting or _begun(study) < trials):
                    left = waiting.pop(0) if waiting else None
                    trial = _ask(optuna, study, space, points, left)
                    slot = min(set(range(jobs)) - set(running))
                    running[slot] = Trial(trial, model, config, shared, folder, seats[slot])
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
    """Parses `key=value,value` texts; values of a list key are separated by `;`.

    Returns:
      {key: list of values}.
    """
    return {
        name: _choices(config.key(name), text, "--grid")
        for name, text in _pairs(items, "--grid").items()
    }


def parse_search(config: Config, name: str, text: str):
    """Parses the search space of a key: `[log:]low:high[:step]` of a number, or `value,value`.

    Returns:
      An Optuna distribution. Choices are stored as the text of a flag.
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
            "file is damaged, move it away to start over."
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
    # SQLite gets the path itself: in a URL, `?` and `%` would have another meaning.
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
            f"The sweep in {folder} was started with other settings ({lines}). Use another "
            "--trainer.experiment_name, or delete that folder."
        )
    # A resumed search must not draw the same first values again.
    study.sampler = optuna.samplers.TPESampler(seed=(seed + len(study.trials)) % 2**31)
    return study


def _begun(study):
    return sum(t.state.name != "WAITING" for t in study.get_trials(deepcopy=False))


def _ask(optuna, study, space, points, running=None):
    """Returns an `optuna.Trial` with all its values: a new or an interrupted one."""
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


# ---------------------------------------------------------------------------- the program


def define_flags(values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    text, many, number, choice = commandline.definers(
        values, "string", "multi_string", "integer", "enum"
    )
    text("model", None, "Model to train: a module name.", short_name="m")
    many("grid", [], "key=value,value (value;value if the key is a list): every combination.")
    many("search", [], "key=low:high, key=low:high:step, key=log:low:high or key=value,value.")
    number("trials", None, "Total number of trials.", lower_bound=1)
    number("jobs", 1, "Number of trials that run at the same time.", lower_bound=1)
    text(
        "metric",
        None,
        "Validation figure to improve; min:NAME or max:NAME states what is better. Default: "
        "trainer.best_metric, otherwise loss.",
    )
    choice("pruner", "median", PRUNERS, "Method that stops bad trials early.")
    choice(
        "engine",
        "local",
        tuple(engines.ENGINES),
        "local: run trials on this machine; ray: run them on the nodes of a Ray cluster "
        "(RAY_ADDRESS), which must share the experiments' folder.",
    )
    number("gpus", 0, "GPUs per trial on Ray; local trials share all.", lower_bound=0)


def main(options: flags.FlagValues, model: ModuleType, given: set[str], rest: list[str]) -> int:
    """The program, for `trainer.program.run`."""
    commandline.no_arguments(rest)
    study = run(
        model,
        keys={name: model.config.to_dict()[name] for name in given},
        grid=parse_grid(model.config, options.grid),
        search=_pairs(options.search, "--search"),
        trials=options.trials,
        jobs=options.jobs,
        metric=options.metric,
        pruner=options.pruner,
        engine=options.engine,
        gpus=options.gpus,
    )
    sweep_report.show(study)
    return 0


def start(argv: list[str] | None = None) -> NoReturn:
    """Runs the program on a command line, `sys.argv` by default."""
    options = flags.FlagValues()
    define_flags(options)
    program.run(
        functools.partial(main, options),
        argv,
        "stopped: the same command resumes",
        flag_values=options,
    )


if __name__ == "__main__":
    start()
