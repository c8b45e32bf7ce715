"""One training on several machines: what TF_CONFIG says, and what its workers agree on.

Every worker runs the same command, in an environment of its own:

    TF_CONFIG='{"cluster": {"worker": ["a:2222", "b:2222"]},
                "task": {"type": "worker", "index": 1}}'

The first worker is the chief: it alone has the experiment's folder. The others get the step and the
weights to start from over the network, so no shared disk is needed.
"""

import concurrent.futures
import contextlib
import json
import os
import re
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from trainer import collectives, experiment, layers, listener, tf_config, towers
from trainer.config import Config, UserError

v1 = tf.compat.v1

EXIT_LOST = 75  # EX_TEMPFAIL: a worker was lost; start all of them again, and they resume
EXIT_PORT = 69  # EX_UNAVAILABLE: this worker's port is taken; start all of them on others

# What a step raises when another worker died, froze, or gave up.
LOST = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.InternalError,
    tf.errors.FailedPreconditionError,
)

NOTE = 1 << 16  # bytes that a worker may say of itself
GRACE = 5.0  # seconds beyond the timeout until a worker counts as hanging
BEAT = 1.0  # seconds between the chief's signs of life while the others wait for it

# Keys that may differ between workers: they change nothing that is exchanged.
_OWN_KEYS = (
    "trainer.experiment_base_dir",
    "trainer.log",
    "trainer.intra_op_threads",
    "trainer.inter_op_threads",
)

_servers: dict[tuple, v1.train.Server] = {}  # a process may train several times


class Nothing:
    """What other workers have in place of what only the chief has: every method does nothing."""

    def __getattr__(self, name):
        return lambda *arguments, **options: None


class Cluster:
    """The workers of a run, and which of them this process is; without TF_CONFIG there is one.

    Args:
      addresses: `host:port` of each worker, the chief's first; empty for one process.
      task: the number of this one.
      timeout: seconds after which a worker that does not answer is lost.

    Attributes:
      count: number of workers.
      chief: whether this is the first one.
      target: what `tf.compat.v1.Session` connects to.
      part: (task, count) as `datasets()` takes it, None for one process.
      requested: the function that `signals.graceful` yields, once the loop runs.
    """

    def __init__(self, addresses: list[str], task: int, timeout: float):
        self.addresses, self.task, self.count = addresses, task, max(len(addresses), 1)
        self.chief, self.target, self.part = task == 0, "", None
        if self.count > 1:
            self.part = task, self.count
        self.requested: Callable[[], str | None] = lambda: None
        self._timeout, self._proto = timeout, None
        self._exchanges: collectives.Collectives
        self._beat: Callable

    def __str__(self):
        return f"worker {self.task} of {self.count} ({self.addresses[self.task]})"

    # ------------------------------------------------------------------------ before the graph

    @contextlib.contextmanager
    def opened(self, config: Config, **options: bool) -> Iterator[str]:
        """Yields the experiment's folder, which only the chief opens (see `experiment.opened`).

        Losing a worker within ends this one with code `EXIT_LOST`.
        """
        try:
            with experiment.opened(config, **options) if self.chief else contextlib.nullcontext():
                yield experiment.directory(config)
        except LOST as error:
            if self.count == 1:
                raise
            self._give_up(self._describe(error))

    def _give_up(self, reason):
        line = f"{self}: {reason}. Every worker stops; start all of them again to resume."
        print(line, file=sys.stderr, flush=True)
        raise SystemExit(EXIT_LOST) from None

    def lost(self, error: tf.errors.OpError) -> bool:
        """Returns whether an error is that of an exchange, which precedes every update."""
        return (
            self.count > 1
            and isinstance(error, LOST)
            and ("ollective" in error.message or bool(self._others(error)))
        )

    def _others(self, error):
        return {int(task) for task in re.findall(r"/task:(\d+)", error.message)} - {self.task}

    def _describe(self, error):
        """One line that says whom this worker lost, as far as an error tells."""
        others = self._others(error)
        if isinstance(error, tf.errors.DeadlineExceededError) or not others:
            return f"lost another worker, which gave up or did not answer in {self._timeout:g} s"
        return "lost " + ", ".join(f"worker {i} ({self.addresses[i]})" for i in sorted(others))

    def only_chief(self, function: Callable, *arguments: Any) -> Any:
        """Returns `function(*arguments)` on the chief, `Nothing` on the others."""
        return function(*arguments) if self.chief else Nothing()

    def start(self, config: Config, tower_devices: list[str]) -> v1.ConfigProto:
        """Starts this worker's server; returns the ConfigProto of its sessions.

        Raises:
          SystemExit: the port is taken, code `EXIT_PORT`.
          UserError: the batch cannot be divided, or the server cannot start.
        """
        proto = towers.session_config(config, tower_devices)
        if self.count == 1:
            return proto
        size, each = config["model.batch_size"], len(tower_devices)
        if size % (self.count * each):
            raise UserError(
                f"model.batch_size={size} is not a multiple of {self.count} workers with {each} "
                f"tower{'s' * (each > 1)} each (trainer.num_towers)."
            )
        proto.experimental.collective_group_leader = "/job:worker/replica:0/task:0"
        proto.device_filters.append(f"/job:worker/task:{self.task}")
        proto.isolate_session_state = True
        hosts = [address.rpartition(":")[0] for address in self.addresses]
        # A thread that spins while it waits takes a core from the worker that it waits for.
        proto.experimental.disable_thread_spinning = hosts.count(hosts[self.task]) > 1
        device = collectives.CPU
        if "GPU" in tower_devices[0]:
            proto.experimental.collective_nccl = True
            device = tower_devices[0]
        key = (*self.addresses, self.task)
        if key not in _servers:
            _servers[key] = self._serve(proto)
        self.target, self._proto = _servers[key].target, proto
        if not listener.answers(self.addresses[0], self._timeout):
            self._give_up(f"the chief ({self.addresses[0]}) did not answer in {self._timeout:g} s")
        self._exchanges = collectives.Collectives(self.count, self.task, self._timeout, device)
        return proto

    def _serve(self, proto):
        address = self.addresses[self.task]
        if listener.taken(address):
            line = f"error: TF_CONFIG: another program has the port of {address}; name a free one."
            print(line, file=sys.stderr, flush=True)
            raise SystemExit(EXIT_PORT)
        try:
            server = v1.train.Server(
                {"worker": self.addresses}, job_name="worker", task_index=self.task, config=proto
            )
        except tf.errors.OpError as error:
            raise UserError(f"TF_CONFIG: cannot listen on {address}: {error.message}.") from None
        listener.restrict(address)
        return server

    def exchange(self, note: Any) -> list[Any]:
        """Returns the notes (JSON values) of all workers, in their order."""
        packed = zlib.compress(json.dumps(note).encode())
        if len(packed) > NOTE - 8:
            raise UserError(f"{self}: its configuration is too long to be compared.")
        packed = len(packed).to_bytes(8, "little") + packed.ljust(NOTE - 8)

        def gathered():
            with tf.Graph().as_default(), v1.Session(self.target, config=self._proto) as session:
                row = tf.constant(np.frombuffer(packed, np.int64)[None])
                return [row.tobytes() for row in session.run(self._exchanges.all_gather(row))]

        texts = self._watched(gathered)
        sizes = [int.from_bytes(text[:8], "little") for text in texts]
        return [
            json.loads(zlib.decompress(t[8 : 8 + n])) for t, n in zip(texts, sizes, strict=True)
        ]

    def _watched(self, function):
        """Returns `function()`, the first exchange of a graph.

        The runtime waits forever, whatever the timeout, for a chief that has died before its first
        answer in a graph; then neither the call nor its session can be ended, only the process.
        """
        done: concurrent.futures.Future = concurrent.futures.Future()

        def run():
            try:
                done.set_result(function())
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        end, missed = time.monotonic() + self._timeout + GRACE, 0
        while not concurrent.futures.wait([done], BEAT).done:
            there = self.chief or listener.answers(self.addresses[0], 0)
            missed = 0 if there else missed + 1
            if missed > 2 or time.monotonic() > end:
                with contextlib.suppress(SystemExit):
                    chief = f"worker 0 ({self.addresses[0]})"
                    self._give_up(f"lost {chief if missed else 'another worker'}")
                sys.stdout.flush()
                os._exit(EXIT_LOST)
        return done.result()

    def meet(self, config: Config, start: list[Any]) -> list[Any]:
        """Returns the chief's `start` (JSON values) to all workers.

        Raises:
          UserError: a worker has another configuration or other versions than the chief.
        """
        if self.count == 1:
            return start
        keys = {k: v for k, v in config.to_dict().items() if k not in _OWN_KEYS}
        versions = experiment.versions()
        notes = self.exchange({"start": start, "version": versions, "configuration": keys})
        for what in ("version", "configuration"):
            self._same(what, [note[what] for note in notes])
        return notes[0]["start"]

    def agree_on_data(self, model: ModuleType, fingerprint: str) -> None:
        """Raises `UserError` if a worker reads other data than the chief.

        Args:
          model: its `digest()`, if it has one, is compared as well.
          fingerprint: `input_state.fingerprint` of the training data.
        """
        if self.count > 1:
            digest = getattr(model, "digest", lambda: None)()
            self._same("data set", self.exchange({"fingerprint": fingerprint, "digest": digest}))

    def _same(self, what, facts):
        """Raises `UserError` where a worker's facts, {name: value}, differ from the chief's."""
        for task, theirs in enumerate(facts):
            names = sorted({*theirs, *facts[0]})
            other = [name for name in names if theirs.get(name) != facts[0].get(name)]
            if other:
                shown = "; ".join(
                    f"{name} is {theirs.get(name)!r} there and {facts[0].get(name)!r} at the chief"
                    for name in other[:4]
                )
                raise UserError(
                    f"worker {task} ({self.addresses[task]}) has another {what} than the chief: "
                    f"{shown}. Start all workers with the same command, code and data."
                )

    # ------------------------------------------------------------------------ in the graph

    def join(self, outputs: layers.ModelDict) -> layers.ModelDict:
        """Returns the outputs of all workers, given those of this one's towers."""
        return collectives.Joined(outputs, self._exchanges) if self.count > 1 else outputs

    def mean(self, gradients: list[tuple], loss, scalars: dict[str, Any]) -> tuple:
        """Averages over workers; all exchanges of a step precede the results.

        Args:
          gradients: [(gradient, variable)].
          loss: scalar tensor.
          scalars: {name: scalar tensor}.

        Returns:
          The three arguments, averaged, and the share of workers that were asked to stop.
        """
        if self.count == 1:
            return gradients, loss, scalars, tf.zeros([])
        with v1.device(collectives.CPU):  # read anew in each step
            asked = tf.numpy_function(lambda: np.float32(bool(self.requested())), [], tf.float32)
            asked = tf.ensure_shape(asked, [])
        values = [tf.ensure_shape(tf.convert_to_tensor(g), v.shape) for g, v in gradients]
        loss, votes, *means = self._exchanges.mean([loss, asked, *scalars.values(), *values])
        scalars = dict(zip(scalars, means, strict=False))
        values = means[len(scalars) :]
        return [(g, v) for g, (_, v) in zip(values, gradients, strict=True)], loss, scalars, votes

    def begin(self, session: v1.Session, variables: list[tf.Variable]) -> None:
        """Gives all workers the chief's values of the variables, in one run of the session."""
        if self.count == 1:
            return
        with session.graph.as_default(), v1.device(collectives.CPU):
            assigned = self._exchanges.broadcast(variables)
            said = v1.placeholder(tf.float32, [collectives.LEAST])
            (told,) = self._exchanges.sum([said])
        self._watched(lambda: session.run(assigned))
        self._beat = session.make_callable(told, [said])

    # ------------------------------------------------------------------------ in the loop

    def agreed(self, votes: float) -> str | None:
        """Returns why all workers stop after this step, or None.

        Args:
          votes: the share of workers that were asked to when the step began.
        """
        if self.count == 1:
            return self.requested()
        return (self.requested() or "another worker was asked to") if votes > 0 else None

    def chief_does(self, function: Callable[[], tuple[bool, ...]]) -> tuple[bool, ...]:
        """Runs a function on the chief while the others wait; all return its result.

        However long it takes, the chief gives a sign of life every BEAT seconds, so that the
        timeout may be shorter than a validation pass.

        Args:
          function: takes nothing and returns bools.
        """
        if self.count == 1:
            return function()
        if not self.chief:
            while not (said := self._say())[0]:
                pass
            return tuple(bool(value) for value in said[2 : 2 + int(said[1])])
        with self._alive():
            found = function()
        self._say(1, len(found), *found)
        return found

    def _say(self, *values):
        """Tells all workers up to LEAST numbers of the chief; returns them."""
        numbers = np.zeros(collectives.LEAST, np.float32)
        numbers[: len(values)] = values
        return self._beat(numbers)

    @contextlib.contextmanager
    def _alive(self):
        """Lets a thread say every BEAT seconds that the chief is alive."""
        done, failed = threading.Event(), []

        def beat():
            try:
                while not done.wait(BEAT):
                    self._say()
            except tf.errors.OpError as error:
                failed.append(error)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        if failed:
            raise failed[0]

    def part_company(self) -> None:
        """Waits at the end of training until all workers have arrived there."""
        if self.count > 1:
            with contextlib.suppress(*LOST):
                self._say()


# ---------------------------------------------------------------------------- TF_CONFIG


def from_environment(config: Config) -> Cluster:
    """Returns the cluster that TF_CONFIG describes; one process where it is not set.

    Raises:
      UserError: TF_CONFIG is malformed, or holds a job that has no part in this training.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    try:
        addresses, task = tf_config.read(text)
    except ValueError as error:
        such = tf_config.EXAMPLE
        raise UserError(
            f"TF_CONFIG={text[:200]} does not describe workers: {error}. Such as {such}"
        ) from None
    return Cluster(addresses, task, float(config["trainer.cluster_timeout"]))
