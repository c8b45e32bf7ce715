"""`python -m trainer.main --model=models.simple`: trains a model."""

import functools
from types import ModuleType
from typing import NoReturn

from absl import flags

from trainer import commandline, program, quiet

quiet.import_tensorflow()

from trainer import config as config_lib  # noqa: E402 (after the quiet import)
from trainer.check_towers import check_towers  # noqa: E402


def define_flags(values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    text, flag, number = commandline.definers(values, "string", "bool", "integer")
    text("model", None, "Model to train: a module name.", short_name="m")
    text("preset", None, "A complete recipe of the model; see the end of --help.")
    text("trainer", "trainer.loop", "Module with the train() to run.", short_name="t")
    flag("fresh", False, "First delete an earlier run of this experiment.", short_name="f")
    flag("yes", False, "Do not ask before deleting.")
    flag("fallback", False, "Set damaged checkpoints aside; resume from the newest undamaged one.")
    flag("allow_config_change", False, "Resume even if the changes make a different run.")
    flag("check_towers", False, "Compare N towers with one tower on a batch; do not train.")
    flag("debug", False, "Open IPython after set-up; do not train.", short_name="d")
    number(
        "replay_step", None, "With --debug: first train up to just before this step.", lower_bound=1
    )


def main(options: flags.FlagValues, model: ModuleType, given: set[str], rest: list[str]) -> None:
    """The program, for `trainer.program.run`."""
    commandline.no_arguments(rest)
    if options.check_towers:
        print("\n".join(check_towers(model, model.config)))
        return
    loop = commandline.load_module(options.trainer, "--trainer")
    if not hasattr(loop, "train"):
        raise config_lib.UserError(f"--trainer={options.trainer}: the module has no train().")
    more = {"fallback": True} if options.fallback else {}  # a copy of an older loop lacks it
    loop.train(
        model,
        model.config,
        fresh=options.fresh,
        yes=options.yes,
        debug=options.debug,
        replay_step=options.replay_step,
        allow_config_change=options.allow_config_change,
        **more,
    )


def run(argv: list[str] | None = None) -> NoReturn:
    """Runs the program on a command line, `sys.argv` by default."""
    options = flags.FlagValues()
    define_flags(options)
    program.run(
        functools.partial(main, options),
        argv,
        "stopped before the first step: the same command starts again",
        flag_values=options,
    )


if __name__ == "__main__":
    run()
