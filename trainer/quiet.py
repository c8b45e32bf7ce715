"""Removes TensorFlow's noise from stderr; real warnings are still shown.

Run as a program, this file copies lines from stdin to stdout without the noise (see `filtered`).
"""

import contextlib
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator

# Lines that a normal start prints and that need no action. All others are shown, such as missing
# GPU libraries on a machine with a GPU. First: all messages of level INFO.
NOISE = re.compile(
    r"^I\d{4} |: I (tensorflow|external|xla)/"
    r"|absl::InitializeLog|oneDNN custom operations are on|cpu_feature_guard"
    r"|To enable the following instructions|Could not find cuda drivers|cudart_stub"
    r"|failed call to cuInit: .*(NO_DEVICE|UNKNOWN ERROR \(303\))"
    r"|Unable to register cu(DNN|FFT|BLAS) factory|computation.placer already registered"
    r"|TF-TRT Warning: Could not find TensorRT|successful NUMA node read from SysFS"
    r"|(libcuda|kernel) reported version|retrieving CUDA diagnostic information|: hostname: "
    r"|Trying algorithm .* is taking a while|Omitted potentially buggy algorithm"
    r"|gpu_timer\.cc.*(Delay kernel timed out|skipping the delay kernel)"
    # A damaged photo, which the error of the program names.
    r"|jpeg_mem\.cc"
    # A worker of a cluster is lost, which the trainer reports in one line.
    r"|(ring_alg|base_collective_executor|rpc_collective_executor_mgr|collective_rma_\w+)\.cc"
    r"|master_session\.cc.*RefreshStepIdSequence|^Additional GRPC error information"
    r"|^:UNKNOWN:Error received from peer|^The error could be from a previous operation"
)
# Messages of several lines: TensorFlow's type inference fails on conditionals with optional values,
# which has no effect; an error of the graph, which is also raised in Python.
_LONG = re.compile(r"type_inference\.cc.*Type inference failed|Local rendezvous is aborting with")
_LONG_GOES_ON = re.compile(
    r"\s|$|\}|goo\.gle/debug|(type_id|args|attr|s|b|i)\b.*[:{]|is neither a subtype"
    r"|for .*type infer|while inferring type"
)
_DEPRECATED = re.compile(r"deprecated|Instructions for updating")


def without_noise(lines: Iterable[str]) -> Iterator[str]:
    """Yields the lines of a program's stderr that are not noise."""
    within = False
    for line in lines:
        within = bool(_LONG.search(line) or (within and _LONG_GOES_ON.match(line)))
        if not within and not NOISE.search(line):
            yield line


def import_tensorflow() -> None:
    """Imports TensorFlow without known noise on stderr; after an exception all lines are shown."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # no INFO lines; warnings stay
    with filtered_stderr():
        import tensorflow as tf

        tf.config.list_physical_devices()  # searches for GPUs now, within the filter
    # tf.compat.v1 is used on purpose: hide its deprecation notices.
    tf.get_logger().addFilter(lambda record: not _DEPRECATED.search(str(record.msg)))
    logging.getLogger("absl").setLevel(logging.WARNING)


@contextlib.contextmanager
def filtered_stderr(kept: Callable = without_noise) -> Iterator[None]:
    """Shows only the lines of stderr (of C too) that `kept` yields, until TensorFlow is imported.

    After an exception, all lines are shown.
    """
    if "tensorflow" in sys.modules:
        yield
        return
    try:
        sys.stderr.flush()
        real, failed = os.dup(2), True
    except (AttributeError, OSError, ValueError):  # stderr is closed: there is nothing to filter
        yield
        return
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
            caught.seek(0)
            lines = caught.read().decode(errors="replace").splitlines(keepends=True)
            for line in lines if failed else kept(lines):
                with contextlib.suppress(OSError):
                    os.write(2, line.encode())


_filtering = False


@contextlib.contextmanager
def filtered() -> Iterator[None]:
    """Hides the noise that TensorFlow and its libraries print while a program runs.

    They write to file descriptor 2, which is connected to a small process of this module until the
    block ends. (A thread could not print the last messages of a program that crashes.) Python's
    own output to `sys.stderr` is not filtered.
    """
    global _filtering
    started = None if _filtering else _start_filter()
    if started is None:
        yield
        return
    process, real, stderr = started
    _filtering = True
    try:
        yield
    finally:
        _filtering = False
        with contextlib.suppress(AttributeError, OSError, ValueError):
            sys.stderr.flush()
        os.dup2(real, 2)  # the last open end of the pipe, unless a child has one: the filter ends
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        sys.stderr = stderr
        os.close(real)


def _start_filter():
    """Returns (the process, the old descriptor 2, the old sys.stderr); None if that fails."""
    stderr = sys.stderr
    try:
        stderr.flush()
        real = os.dup(2)
    except (AttributeError, OSError, ValueError):
        return None
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=real,
            stderr=real,
            start_new_session=True,  # Ctrl-C ends the program, but not this filter
        )
    except OSError:
        os.close(real)
        return None
    os.dup2(process.stdin.fileno(), 2)
    process.stdin.close()
    with contextlib.suppress(AttributeError, OSError, ValueError):
        if stderr.fileno() == 2:
            sys.stderr = open(  # noqa: SIM115 (closed with the program)
                real, "w", 1, encoding=stderr.encoding, errors=stderr.errors, closefd=False
            )
    return process, real, stderr


if __name__ == "__main__":
    source = open(0, encoding="utf-8", errors="surrogateescape", newline="")  # noqa: SIM115
    for text in without_noise(source):
        with contextlib.suppress(OSError):
            os.write(1, text.encode("utf-8", "surrogateescape"))
