"""Start-up noise is hidden; warnings are not."""

import subprocess
import sys

import pytest

from trainer import quiet

HIDDEN = """
2025-01-01 00:00:00.000000: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on. You may see slightly different numerical results
I0000 00:00:1740000000.000000   123 gpu_device.cc:2020] Created device /job:localhost/replica:0/task:0/device:GPU:0 with 79205 MB memory
E0000 00:00:1740000000.000000   123 cuda_dnn.cc:8579] Unable to register cuDNN factory: Attempting to register factory for plugin cuDNN when one has already been registered
W0000 00:00:1740000000.000000   123 computation_placer.cc:177] computation placer already registered. Please check linkage and avoid linking the same target more than once.
2025-01-01 00:00:00.000000: I external/local_xla/xla/tsl/cuda/cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU will not be used.
2025-01-01 00:00:00.000000: W tensorflow/compiler/tf2tensorrt/utils/py_utils.cc:38] TF-TRT Warning: Could not find TensorRT
E0000 00:00:1740000000.000000   123 cuda_executor.cc:1228] failed call to cuInit: INTERNAL: CUDA error: Failed call to cuInit: CUDA_ERROR_NO_DEVICE: no CUDA-capable device is detected
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
"""  # noqa: E501
SHOWN = """
W0000 00:00:1740000000.000000   123 gpu_device.cc:2341] Cannot dlopen some GPU libraries. Skipping registering GPU devices...
E0000 00:00:1740000000.000000   123 cuda_executor.cc:1228] failed call to cuInit: INTERNAL: CUDA error: Failed call to cuInit: CUDA_ERROR_UNKNOWN: unknown error
UserWarning: the disk is nearly full
"""  # noqa: E501


@pytest.mark.parametrize("line", HIDDEN.strip().splitlines())
def test_noise_is_known(line):
    assert quiet.NOISE.search(line)


@pytest.mark.parametrize("line", SHOWN.strip().splitlines())
def test_warnings_are_not_noise(line):
    assert not quiet.NOISE.search(line)


PROGRAM = """
import os, sys, types
class Fake:
    def find_spec(self, name, path, target=None):
        if name == "tensorflow":
            os.write(2, b"I0000 noise\\nW0000 a real warning\\n")
            {end}
sys.meta_path.insert(0, Fake())
from trainer import quiet
quiet.import_tensorflow()
print(1, file=sys.stderr)
os._exit(0)
"""


def test_warnings_show_and_an_exception_shows_everything():
    def stderr(end):
        code = PROGRAM.replace("{end}", end)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr

    assert stderr("pass") == "W0000 a real warning\n1\n"
    failed = stderr("raise OSError('broken')")
    assert "I0000 noise" in failed and "W0000 a real warning" in failed and "broken" in failed
