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
E0000 00:00:1740000000.000000   123 jpeg_mem.cc:331] Premature end of JPEG data. Stopped at line 0/144
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


TYPES = """\
W0000 00:00:1740000000.000000   123 type_inference.cc:340] Type inference failed. This indicates an invalid graph that escaped type checking. Error message: INVALID_ARGUMENT: expected compatible input types, but input 1:
goo.gle/debugproto
type_id: TFT_OPTIONAL
args {
  type_id: TFT_PRODUCT
  args {
    type_id: TFT_TENSOR
  }
}
 is neither a subtype nor a supertype of the combined inputs preceding it:
goo.gle/debugproto
type_id: TFT_OPTIONAL

\tfor Tuple type infernce function 0
\twhile inferring type of node 'cond/output/_69'
"""  # noqa: E501


def test_a_message_of_many_lines_is_noise_to_its_end():
    shown = ["W0000 a real warning\n", "args are real, too\n", "  and what is indented\n"]
    graph = "W0000 local_rendezvous.cc:412] Local rendezvous is aborting with status: X\n\t [[a]]\n"
    types = TYPES.splitlines(keepends=True)
    lines = [shown[0], *types, *shown[1:], *graph.splitlines(keepends=True), *types]
    assert list(quiet.without_noise(lines)) == shown


DURING = """
import os, sys
from trainer import quiet
with quiet.filtered(), quiet.filtered():
    os.write(2, b"I0000 noise\\nW0000 a real warning\\n")
    print("Python", file=sys.stderr)
    os.write(2, b"last words: \\xff")
    {end}
os.write(2, b", I0000 after")
"""


def test_noise_is_hidden_while_a_program_runs_whatever_its_end():
    def stderr(end):
        code = DURING.replace("{end}", end)
        # Until the filter has ended, too: it holds the pipe.
        return subprocess.run([sys.executable, "-c", code], capture_output=True).stderr

    shown = b"W0000 a real warning\nlast words: \xff"
    assert stderr("pass").replace(b"Python\n", b"") == shown + b", I0000 after"
    for end in ("os.abort()", "os._exit(3)", "os.kill(os.getpid(), 9)"):
        assert stderr(end).replace(b"Python\n", b"") == shown, end
    assert stderr("raise OSError('broken')").replace(b"Python\n", b"").startswith(shown)


def test_closed_streams_need_no_filter():
    code = "import trainer.quiet as q; exec('with q.filtered(): pass')"
    close = 'exec 0<&- 1>&- 2>&-; exec "$0" -c "$1"'
    assert subprocess.run(["sh", "-c", close, sys.executable, code]).returncode == 0


def test_warnings_show_and_an_exception_shows_everything():
    def stderr(end):
        code = PROGRAM.replace("{end}", end)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr

    assert stderr("pass") == "W0000 a real warning\n1\n"
    failed = stderr("raise OSError('broken')")
    assert "I0000 noise" in failed and "W0000 a real warning" in failed and "broken" in failed
