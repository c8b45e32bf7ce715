"""`python -m trainer.run --model=M --action=package.module`: runs your own action on a model.

An action is a module with `run(model, config)`. It gets the model module and the configuration of
the experiment if it exists, otherwise of the model; flags override it. Flags that the module
defines with absl when it is imported become flags of the program. If `run` returns a whole number,
it is the exit code.
"""

import contextlib
import functools
import sys
from types import ModuleType
from typing import NoReturn

from absl import flags

from trainer import commandline, program, quiet

quiet.import_tensorflow()

from trainer import experiment  # noqa: E402
from trainer.config import UserError, did_you_mean  # noqa: E402


def load_action(name: str | None) -> ModuleType:
    """Returns the module named by `--action`.

    Raises:
      UserError: there is no such module, or it has no `run`.
    """
    if not name:
        raise UserError("Give an action: --action=package.module, with run(model, config) in it.")
    action = commandline.load_module(name, "--action")
    if not callable(getattr(action, "run", None)):
        functions = [n for n, v in vars(action).items() if callable(v) and not n.startswith("_")]
        near = did_you_mean("run", functions)
        raise UserError(f"--action={name}: the module has no run(model, config).{near}")
    return action


def main(options: flags.FlagValues, model: ModuleType, given: set[str], rest: list[str]) -> int:
    """The program, for `trainer.program.run`."""
    commandline.no_arguments(rest)
    action = load_action(options.action)
    experiment.restore_config(model, given)
    code = action.run(model, model.config)
    return code if isinstance(code, int) else 0


def define_flags(values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    (text,) = commandline.definers(values, "string")
    text("model", None, "Model to act on: a module name.", short_name="m")
    text("action", None, "Module with the run(model, config) to run.", short_name="a")


def run(argv: list[str] | None = None) -> NoReturn:
    """Runs the program on a command line, `sys.argv` by default."""
    argv = sys.argv if argv is None else argv
    options = flags.FlagValues()
    define_flags(options)
    # Import the action before parsing the flags, so that its flags are known. main() reports wrong
    # names.
    with contextlib.suppress(flags.Error, UserError):
        options(commandline.expand_flag_files(argv), known_only=True)
        load_action(options.action)
    program.run(functools.partial(main, options), argv, "stopped", flag_values=options)


if __name__ == "__main__":
    run()
