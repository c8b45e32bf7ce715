"""Engines run processes on this machine, or on the nodes of a Ray cluster.

An engine yields seats. On each seat, one process at a time can run:

    with engine(count) as seats:
        process = seats[0].start(command, environment)
        process.poll(), process.send_signal(15), process.wait()
"""

import contextlib
import glob
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from trainer import listener
from trainer.config import UserError

SECONDS = 60  # seconds to wait for free resources of a Ray cluster

# Variables that Ray sets for its workers: one thread per process, and legacy Keras.
_OF_RAY = ("OMP_NUM_THREADS", "TF_USE_LEGACY_KERAS")

# Becomes the command, after asking the kernel for a signal at the end of the parent process.
_BOUND = """
import ctypes, os, sys
number, parent, *command = sys.argv[1:]
ctypes.CDLL(None).prctl(1, int(number))  # PR_SET_PDEATHSIG
if os.getppid() == int(parent):
    os.execvp(command[0], command)
"""


def bound(command: list[str], number: int) -> list[str]:
    """Returns a command whose process gets a signal when the calling process ends (on Linux)."""
    if sys.platform != "linux":
        return command
    return [sys.executable, "-I", "-S", "-c", _BOUND, str(int(number)), str(os.getpid()), *command]


def trainer_command(*flags: str) -> list[str]:
    """Returns the training command; sets the path that it needs in `environment`."""
    # -P: PYTHONPATH is this process's path; the current folder must not come before it.
    return [sys.executable, "-P", "-m", "trainer.main", *flags]


def _environment(extra):
    path = os.pathsep.join(p for p in sys.path if p)
    kept = {name: value for name, value in os.environ.items() if name not in _OF_RAY}
    return kept | {"PYTHONPATH": path} | dict(extra)


def gpus_of(slot: int, count: int) -> dict[str, str]:
    """Divides this machine's GPUs among processes.

    Args:
      slot: number of a process.
      count: number of processes.

    Returns:
      Its environment: CUDA_VISIBLE_DEVICES, or nothing if there are fewer GPUs than processes.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name for name in (visible or "").split(",") if name]
    if visible is None:
        names = [str(i) for i in range(len(glob.glob("/dev/nvidia[0-9]*")))]
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[slot::count])} if len(names) >= count > 1 else {}


# ---------------------------------------------------------------------------- this machine


class _LocalSeat:
    def __init__(self, slot, count):
        self._gpus = gpus_of(slot, count)

    def address(self) -> str:
        """Returns `host:port` with a port that is free."""
        return f"127.0.0.1:{listener.free_port()}"

    def start(
        self,
        command: list[str],
        environment: Mapping[str, str],
        log: str | None = None,
        outlives: bool = False,
    ) -> Any:
        """Starts a process.

        Args:
          command: the program and its arguments.
          environment: added to this process's.
          log: file to which the output is appended; default: the output of this process.
          outlives: let the process continue if this process is killed; otherwise it gets SIGTERM.

        Returns:
          An object with `poll()`, `wait()` and `send_signal(number)` of `subprocess.Popen`.
        """
        command = command if outlives else bound(command, signal.SIGTERM)
        with contextlib.nullcontext() if log is None else open(log, "a", encoding="utf-8") as out:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=_environment({**self._gpus, **environment}),
                start_new_session=True,  # Ctrl-C reaches it once, from this process
            )


@contextlib.contextmanager
def local(count: int, gpus: int = 0) -> Iterator[list[Any]]:
    """Yields seats on this machine, which share its GPUs.

    Args:
      count: number of seats.
      gpus: ignored.
    """
    yield [_LocalSeat(slot, count) for slot in range(count)]


# ---------------------------------------------------------------------------- Ray


class _Runner:
    """Runs in an actor: a process on the actor's node, which dies with the actor."""

    def __init__(self):
        self._process = None

    def address(self):
        import ray

        host = ray.util.get_node_ip_address()
        return f"{host}:{listener.free_port(host)}"

    def start(self, command, environment, folder, log):
        with contextlib.nullcontext() if log is None else open(log, "a", encoding="utf-8") as out:
            # SIGKILL: the process that replaces it must not meet it.
            self._process = subprocess.Popen(
                bound(command, signal.SIGKILL),
                cwd=folder if os.path.isdir(folder) else None,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=_environment(environment),
            )
        return self._process.pid

    def poll(self):
        return self._process.poll()

    def send_signal(self, number):
        self._process.send_signal(number)


class _RaySeat:
    def __init__(self, ray, options):
        self._ray, self._options, self.actor = ray, options, None

    def _call(self, name, *arguments):
        if self.actor is None:
            self.actor = self._ray.remote(_Runner).options(**self._options).remote()
        return self._ray.get(getattr(self.actor, name).remote(*arguments))

    def address(self):
        return self._call("address")

    def start(self, command, environment, log=None, outlives=False):
        del outlives  # Ray ends the actors of a driver that ends
        self._call("start", command, dict(environment), os.getcwd(), log)
        return _RayProcess(self)

    def poll(self):
        try:
            return self._call("poll")
        except self._ray.exceptions.RayActorError:
            return -signal.SIGKILL

    def release(self):
        if self.actor is not None:
            self._ray.kill(self.actor)
        self.actor = None


class _RayProcess:
    """A process on a seat, with the methods of `subprocess.Popen` that engines provide."""

    def __init__(self, seat):
        self._seat, self._code = seat, None

    def poll(self):
        if self._code is None:
            self._code = self._seat.poll()
            if self._code is not None:
                self._seat.release()
        return self._code

    def send_signal(self, number):
        if self.poll() is None:
            with contextlib.suppress(self._seat._ray.exceptions.RayActorError):
                self._seat._call("send_signal", int(number))

    def wait(self):
        while self.poll() is None:
            time.sleep(0.1)
        return self._code


def connect_ray(**options: Any) -> bool:
    """Connects to the Ray cluster of RAY_ADDRESS (`auto`: one on this machine), or starts one here.

    Args:
      **options: options of `ray.init`.

    Returns:
      Whether this process was not connected before and must call `ray.shutdown`.

    Raises:
      UserError: the cluster cannot be reached.
    """
    import ray

    if ray.is_initialized():
        return False
    if not os.environ.get("RAY_ADDRESS"):
        options |= {"address": "local", "include_dashboard": False}
    try:
        ray.init(logging_level="ERROR", **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--engine=ray: cannot reach a Ray cluster: {reason}") from None
    return True


@contextlib.contextmanager
def on_ray(count: int, gpus: int = 0) -> Iterator[list[Any]]:
    """Yields seats on the nodes of the Ray cluster of RAY_ADDRESS, or of one on this machine.

    Args:
      count: number of seats, each with one CPU.
      gpus: GPUs per seat.

    Raises:
      UserError: Ray is not installed, or the cluster has too few free resources.
    """
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send usage statistics
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Group
    except ModuleNotFoundError:
        raise UserError("--engine=ray needs Ray: pip install 'prototrain[distributed]'.") from None
    # Actors import this module from the same path as this process.
    path = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    started = connect_ray(runtime_env={"env_vars": path})
    bundle = {"CPU": 1} | ({"GPU": gpus} if gpus else {})
    # All seats or none, spread over the nodes.
    group = ray.util.placement_group([bundle] * count, strategy="SPREAD")
    seats = []
    try:
        if not group.wait(SECONDS):
            has = {name: ray.cluster_resources().get(name, 0) for name in bundle}
            raise UserError(
                f"--engine=ray: no room for {count} processes with {bundle} each; the cluster has "
                f"{has} in total. Use fewer, or wait until others end."
            )
        for slot in range(count):
            place = Group(group, placement_group_bundle_index=slot)
            options = {"num_cpus": 1, "num_gpus": gpus, "scheduling_strategy": place}
            seats.append(_RaySeat(ray, options))
        yield seats
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--engine=ray: {reason}") from None
    finally:
        for seat in seats:
            seat.release()
        ray.util.remove_placement_group(group)
        if started:
            ray.shutdown()


ENGINES = {"local": local, "ray": on_ray}
