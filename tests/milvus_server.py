"""The optional job: tests, or a benchmark, against the Milvus server of the wheel `milvus`.

    pip install milvus
    python tests/milvus_server.py [COMMAND …]

starts the server on a free port, runs the tests of catalogues in Milvus (or COMMAND) with its
address in PROTOTRAIN_MILVUS, and stops it. The server takes about 1 GiB of memory.
"""

import os
import socket
import subprocess
import sys
import tempfile

TESTS = ["-m", "pytest", "-n0", "-q", "tests/retrieval/catalogue/test_milvus.py"]


def main(command):
    from milvus import MilvusServer

    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        server = MilvusServer()
        server.set_base_dir(folder)
        server.listen_port = port
        free.close()
        server.start()
        try:
            environment = os.environ | {"PROTOTRAIN_MILVUS": f"http://127.0.0.1:{port}"}
            return subprocess.run(command or [sys.executable, *TESTS], env=environment).returncode
        finally:
            server.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
