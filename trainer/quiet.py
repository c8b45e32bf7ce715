"""Imports TensorFlow without its start-up banner; real warnings still show."""

import contextlib
import logging
import os
import re
import sys
import tempfile

# Lines that every start prints and nobody can act on. Everything else is passed on.
_NOISE = re.compile(
    r"oneDNN custom operations are on|cudart_stub|cpu_feature_guard|cuInit|absl::InitializeLog"
    r"|To enable the following instructions|computation_placer|Unable to register cu"
)
_DEPRECATED = re.compile(r"deprecated|Instructions for updating")


def import_tensorflow():
    """Imports TensorFlow, dropping known noise from stderr; on an exception everything is shown."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # no INFO lines; warnings stay
    with _filtered_stderr():
        import tensorflow as tf

        tf.config.list_physical_devices()  # probes for GPUs now, within the filter
    # The library is used through tf.compat.v1 on purpose: its deprecation notices say nothing new.
    tf.get_logger().addFilter(lambda record: not _DEPRECATED.search(str(record.msg)))
    logging.getLogger("absl").setLevel(logging.WARNING)


@contextlib.contextmanager
def _filtered_stderr():
    if "tensorflow" in sys.modules:
        yield
        return
    sys.stderr.flush()
    real, failed = os.dup(2), True
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
                if failed or not _NOISE.search(line):
                    os.write(2, line.encode())
