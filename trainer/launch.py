"""`python -m trainer.launch --workers=2 -- --model=M …`: trains with several processes.

All arguments after `--` are flags of `trainer.main`. Each worker gets its own TF_CONFIG (see
`trainer.cluster`). When a worker dies, the others end, and all restart from the last checkpoint.
"""

import json
import signal
import time
from typing import Any, NoReturn

from absl import flags

from trainer import commandline, engines, program, signals
from trainer.config import UserError

# Exit codes of trainer.cluster, which imports TensorFlow.
EXIT_LOST, EXIT_PORT = 75, 69

SECONDS = 0.1  # seconds between checks of the workers
GRACE = 30  # seconds for a worker to end after another died; ten times for the chief, which saves
PORTS = 10  # number of attempts with other ports


def run(
    arguments: list[str], workers: int, engine: str = "local", max_failures: int = 3, gpus: int = 0
) -> int:
    """Trains with several processes.

    Args:
      arguments: flags of `trainer.main`.
      workers: number of workers.
      engine: a key of `engines.ENGINES`.
      max_failures: how often a group that lost a worker is restarted.
      gpus: GPUs per worker, for Ray.

    Returns:
      The exit code: 0 if training ended or was stopped by a signal, otherwise that of a worker that
      reported an error.

    Raises:
      UserError: workers died more often than `max_failures`.
    """
    failures, busy = 0, 0
    with engines.ENGINES[engine](workers, gpus) as seats, signals.graceful() as stop_requested:
        while True:
            codes = _train(seats, arguments, stop_requested)
            if not any(codes) or stop_requested():
                return int(any(codes))
            if EXIT_PORT in codes and busy < PORTS:
                busy += 1
                continue
            for code in codes:
                if 0 < code < 128 and code not in (EXIT_LOST, EXIT_PORT):
                    return code  # it has printed the reason; a restart would not help
            failures += 1
            what = "; ".join(f"worker {i}: {_said(code)}" for i, code in enumerate(codes) if code)
            if failures > max_failures:
                raise UserError(
                    f"{what}. The group failed {failures} times, more than --max_failures="
                    f"{max_failures}. The same command resumes from the last checkpoint."
                )
            print(f"{what}. Restarting all workers ({failures} of {max_failures}).", flush=True)
            arguments = [*arguments, "--nofresh"]  # the run to resume must not be deleted


def _said(code):
    if code in (EXIT_LOST, EXIT_PORT):
        return "lost another worker" if code == EXIT_LOST else "its port was in use"
    return f"killed by signal {-code if code < 0 else code - 128}"


def _train(seats: list[Any], arguments: list[str], stop_requested) -> list[int]:
    """Starts all workers once; returns their exit codes."""
    command = engines.trainer_command(*arguments)
    jobs = {"worker": [seat.address() for seat in seats]}
    processes, told, ends = [], False, None
    try:
        for index, seat in enumerate(seats):
            task = {"type": "worker", "index": index}
            told_config = json.dumps({"cluster": jobs, "task": task})
            processes.append(seat.start(command, {"TF_CONFIG": told_config}))
        while None in (codes := [process.poll() for process in processes]):
            failed = any(codes)
            if (failed or stop_requested()) and not told:
                # Only once: a second signal would end the chief while it saves.
                told, ends = True, time.monotonic()
                _signal(processes, codes, signal.SIGTERM)
            for process, code, limit in zip(
                processes, codes, [10 * GRACE, *[GRACE] * len(seats)], strict=False
            ):
                if failed and code is None and time.monotonic() > ends + limit:
                    process.send_signal(signal.SIGKILL)
            time.sleep(SECONDS)
        return codes
    finally:
        _signal(processes, [process.poll() for process in processes], signal.SIGKILL)


def _signal(processes, codes, number):
    for process, code in zip(processes, codes, strict=True):
        if code is None:
            process.send_signal(number)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    number, choice = commandline.definers(values, "integer", "enum")
    number("workers", 2, "Processes that train together.", lower_bound=1)
    choice(
        "engine",
        "local",
        tuple(engines.ENGINES),
        "local: run on this machine; ray: run on the nodes of a Ray cluster (RAY_ADDRESS).",
    )
    number("max_failures", 3, "How often to restart after a worker has died.", lower_bound=0)
    number("gpus", 0, "GPUs per worker on Ray; local workers share all.", lower_bound=0)


def start(argv: list[str] | None = None) -> NoReturn:
    """Runs the program on a command line, `sys.argv` by default."""
    options = flags.FlagValues()
    define_flags(options)

    def main(*arguments: str) -> int:
        if not arguments:
            raise UserError("give the flags of train after --, such as -- --model=models.simple")
        given = options.workers, options.engine, options.max_failures, options.gpus
        return run(list(arguments), *given)

    stopped = "stopped before the first step: the same command starts again"
    program.run_without_model(main, argv, stopped, ["[-- flags of train…]"], options)


if __name__ == "__main__":
    start()
