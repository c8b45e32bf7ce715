"""Runs a program: one-line errors, exit codes, and output that survives a closed pipe."""

import contextlib
import importlib.metadata
import os
import platform
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from absl import flags

from trainer import commandline, helptext, quiet
from trainer.config import UserError


def run(
    main: Callable[[Any, set[str], list[str]], int | None],
    argv: list[str] | None = None,
    stopped: str | None = None,
    flag_values: flags.FlagValues = flags.FLAGS,
    model_needed: bool = True,
    renamed: Mapping[str, str] = {},
) -> NoReturn:
    """Runs `main(model, given, rest)` as a program: flags, help, one-line errors, exit code.

    An error that the user can fix becomes one line on stderr and exit code 1; `--debug` adds the
    traceback. Any other error is a bug: after its traceback, a line asks for a report.

    Args:
      main: gets the result of `from_flags` and returns the exit code.
      argv: the command line; `sys.argv` if None.
      stopped: a line for Ctrl-C, exit code 130; with None, KeyboardInterrupt is raised.
      flag_values: the program's flags.
      model_needed: whether `--model` must be given; without it, `main` gets None.
      renamed: {name of an earlier flag: its replacement}, for a message.
    """

    def work(argv: list[str]) -> int | None:
        return main(*commandline.from_flags(argv, flag_values, model_needed, renamed))

    guarded(work, argv, stopped)


def run_without_model(
    main: Callable[..., int | None],
    argv: list[str] | None = None,
    stopped: str | None = None,
    arguments: Sequence[str] = (),
    flag_values: flags.FlagValues = flags.FLAGS,
    renamed: Mapping[str, str] = {},
) -> NoReturn:
    """Like `run`, for a program `main(*rest)` whose flags are all defined already.

    Args:
      main: gets the positional arguments.
      argv: the command line; `sys.argv` if None.
      stopped: see `run`.
      arguments: names of the positional arguments, in order; those in brackets may be omitted, and
        one that ends with '…' may be repeated.
      flag_values: the program's flags.
      renamed: see `run`.
    """
    needed = [name for name in arguments if not name.startswith("[")]

    def work(argv: list[str]) -> int | None:
        argv, wanted = commandline.without_help(commandline.expand_flag_files(argv))
        if wanted:
            raise helptext.Wanted(helptext.render(flag_values, None, wanted, arguments))
        try:
            rest = flag_values(argv)[1:]
        except flags.Error as error:
            raise commandline.flag_error(error, renamed, flag_values) from None
        if len(rest) > len(arguments) and not "".join(arguments[-1:]).strip("[]").endswith("…"):
            raise UserError(f"unexpected argument {rest[len(arguments)]!r}")
        if len(rest) < len(needed):
            raise UserError(f"give {' '.join(arguments)}; {needed[len(rest)]} is missing")
        return main(*rest)

    guarded(work, argv, stopped)


def guarded(
    work: Callable[[list[str]], int | None], argv: list[str] | None, stopped: str | None
) -> NoReturn:
    """Runs `work(argv)` as a program: one-line errors, exit code, output that may be closed."""
    with quiet.filtered():
        for stream in ("stdout", "stderr"):
            setattr(sys, stream, _Tolerant(getattr(sys, stream)))
        _one_line_errors(work, sys.argv if argv is None else argv, stopped)


def _one_line_errors(
    work: Callable[[list[str]], int | None], argv: list[str], stopped: str | None
) -> NoReturn:
    try:
        sys.exit(work(argv))
    except helptext.Wanted as wanted:
        print(wanted)
        sys.exit(0)
    except (UserError, flags.Error, OSError, MemoryError) as error:
        # An OSError without a file name is not about a user's file: it is a bug.
        if isinstance(error, OSError) and not error.filename:
            _report_bug()
        if any(a in ("--debug", "-d", "-debug") for a in argv):
            raise
        line = commandline.one_line(error)
        if isinstance(error, OSError):
            line = f"{error.filename}: {error.strerror or error}"
        if isinstance(error, MemoryError):
            line = f"out of memory{': ' * bool(line)}{line}"
        print(f"error: {line}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        if stopped is None:
            raise
        print(stopped, file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, ImportError) and commandline.hidden_packages():
            print(f"error: {commandline.hidden_packages()[0]}", file=sys.stderr)
            sys.exit(1)
        _report_bug()


def _report_bug() -> NoReturn:
    traceback.print_exc()
    versions = [f"Python {platform.python_version()}"]
    for name in ("prototrain", "tensorflow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.insert(0, f"{name} {importlib.metadata.version(name)}")
    print(
        "This is a bug, in your code or in Prototrain. If in Prototrain, please report the lines "
        f"above with your command, and {', '.join(versions)}.",
        file=sys.stderr,
    )
    sys.exit(1)


class _Tolerant:
    """A text stream that remains usable after its reader has closed it: further text is dropped.

    Characters that are not in its encoding are escaped. Text to closed streams, which Python shows
    as None, is dropped too.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream.stream if isinstance(stream, _Tolerant) else stream
        with contextlib.suppress(AttributeError, ValueError, OSError):
            self._stream.reconfigure(errors="backslashreplace")

    @property
    def stream(self) -> Any:
        return self._stream

    def write(self, text: str) -> int:
        return self._try("write", text) or len(text)

    def flush(self) -> None:
        self._try("flush")

    def _try(self, method: str, *arguments: Any) -> Any:
        if self._stream is None:
            return None
        try:
            return getattr(self._stream, method)(*arguments)
        except OSError:
            # Python flushes the stream again at exit: discard the buffer.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        except ValueError:  # closed
            pass
        return None

    def isatty(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
