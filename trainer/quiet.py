"""Imports TensorFlow without its start-up banner; real warnings still show."""

import contextlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# Lines that a healthy start prints and nobody can act on. Everything else is passed on, such as
# missing GPU libraries on a machine with a GPU. First: everything of level INFO.
NOISE = re.compile(
    r"^I\d{4} |: I (tensorflow|external|xla)/"
    r"|absl::InitializeLog|oneDNN custom operations are on|cpu_feature_guard"
    r"|To enable the following instructions|Could not find cuda drivers|cudart_stub"
    r"|failed call to cuInit: .*(NO_DEVICE|UNKNOWN ERROR \(303\))"
    r"|Unable to register cu(DNN|FFT|BLAS) factory|computation.placer already registered"
    r"|TF-TRT Warning: Could not find TensorRT|successful NUMA node read from SysFS"
    r"|(libcuda|kernel) reported version|retrieving CUDA diagnostic information|: hostname: "
)
_DEPRECATED = re.compile(r"deprecated|Instructions for updating")


def import_tensorflow() -> None:
    """Imports TensorFlow without known noise on stderr; on an exception everything is shown."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # no INFO lines; warnings stay
    with filtered_stderr():
        import tensorflow as tf

        tf.config.list_physical_devices()  # probes for GPUs now, within the filter
    # The library is used through tf.compat.v1 on purpose: hide its deprecation notices.
    tf.get_logger().addFilter(lambda record: not _DEPRECATED.search(str(record.msg)))
    logging.getLogger("absl").setLevel(logging.WARNING)


@contextlib.contextmanager
def filtered_stderr() -> Iterator[None]:
    """Drops what matches `NOISE` from stderr, also from C, until TensorFlow is imported."""
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
            for line in caught.read().decode(errors="replace").splitlines(keepends=True):
                if failed or not NOISE.search(line):
                    with contextlib.suppress(OSError):
                        os.write(2, line.encode())
