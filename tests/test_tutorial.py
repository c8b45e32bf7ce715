"""The tutorial's commands, in its order, on the shop of real photos that it names."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "tutorial.md").read_text()
COMMANDS = [
    shlex.split(line)[1:]
    for block in re.findall(r"^```\n(.*?)^```", TEXT, re.M | re.S)
    for line in block.splitlines()
    if line.startswith("prototrain ")
]
ADDRESS = re.search(r"http://127\.0\.0\.1:8000", TEXT)[0]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Runs all commands but `serve`; returns the folder and {verb: what it printed}."""
    folder = tmp_path_factory.mktemp("tutorial")
    shutil.copytree(ROOT / "examples" / "shop", folder / "examples" / "shop")
    printed = {}
    for arguments in COMMANDS:
        if arguments[0] != "serve":
            done = subprocess.run(
                [sys.executable, "-m", "trainer.cli", *arguments],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=600,
            )
            assert done.returncode == 0, f"prototrain {shlex.join(arguments)}\n{done.stderr}"
            printed.setdefault(arguments[0], []).append(done.stdout)
    return folder, printed


def test_the_commands_do_what_the_tutorial_says(ran):
    folder, printed = ran
    assert list(printed) == ["audit", "train", "eval", "build", "search"]
    assert (folder / "experiments" / "exp-ranker" / "checkpoint").is_dir()
    report = re.search(r"Wrote (\S+-report\.html)", printed["eval"][0])[1]
    assert (folder / report).is_file()
    assert (folder / "shop-index").is_dir()
    assert all("Lemon" in found for found in printed["search"])
    assert "<img" in (folder / "found.html").read_text()


def test_the_search_page_opens_where_it_says(ran):
    folder, _ = ran
    (serve,) = (arguments for arguments in COMMANDS if arguments[0] == "serve")
    port = 18000 + os.getpid() % 10000
    server = subprocess.Popen(
        [sys.executable, "-m", "trainer.cli", *serve, f"--port={port}"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        page = _page(ADDRESS.replace("8000", str(port)), server)
    finally:
        server.send_signal(signal.SIGTERM)
        said = server.communicate(timeout=60)[0]
    assert "<html" in page and f"127.0.0.1:{port}" in said
    assert server.returncode == 0, said


def _page(address, server, seconds=120):
    until = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                return answer.read().decode()
        except (urllib.error.URLError, ConnectionError):
            if server.poll() is not None or time.monotonic() > until:
                pytest.fail(f"the server does not answer: {server.poll()}")
            time.sleep(0.2)
