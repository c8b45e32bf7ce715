"""The program: flags, and a server of two processes from start to end."""

import re
import shutil
import signal
import sys
import threading
import time

import httpx
import pytest
from absl import flags
from stores import run_program

from retrieval import client
from retrieval.catalogue import index
from retrieval.ranking import counting
from retrieval.serve import main, opening, processes, searcher


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """The server sets variables for its process, which would make later training wrong."""
    for name in ("TF_OVERRIDE_GLOBAL_THREADPOOL", "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--index=INDEX"),
        (["--index=/nowhere", "--port=0"], "/nowhere"),
        (["--index=i", "--host=0.0.0.0"], "--token"),
        (["--index=i", "--host=::"], "--open"),
        (["--index=i", "--host=nowhere.invalid", "--open"], "--host=nowhere.invalid"),
        (["--index=i", "--port=99999"], "port"),
        (["--index=i", "--max_queue=0"], "max_queue"),
        (["--index=i", "--feedback=/nowhere/f"], "/nowhere/f"),
        (["extra", "--index=i"], "extra"),
    ],
)
def test_errors_of_the_user_are_one_line(arguments, said, capsys, monkeypatch):
    monkeypatch.delenv("PROTOTRAIN_TOKEN", raising=False)
    assert run_program(main, *arguments) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0]


def test_gpus_are_those_that_are_visible(monkeypatch):
    for text, expected in (("", []), ("-1", []), ("2, 5", ["2", "5"]), ("GPU-a", ["GPU-a"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
        assert main._gpus() == expected


@pytest.mark.parametrize(
    ("arguments", "gpus", "expected"),
    [
        ([], "", (2, (1, 0), 0, False)),
        (["--threads=3"], "", (2, (1, 3), 3, False)),
        (["--threads=1"], "", (2, (1, None), 1, False)),
        (["--max_batch=8", "--threads=3"], "", (8, (1, 3), 3, False)),
        ([], "0", (32, (0, None), 0, True)),
    ],
)
def test_each_core_calls_the_model_by_itself_and_a_gpu_is_called_once(
    arguments, gpus, expected, monkeypatch
):
    """(Images per call, threads of TensorFlow per call and for a lone query, the server's, GPU)."""
    monkeypatch.setattr(counting, "cores", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.setattr(opening, "shelves", lambda *given: [given[-2:]])
    monkeypatch.setattr(searcher, "Searcher", lambda *given: given)
    options = flags.FlagValues()
    main.define_flags(options)
    options(["serve", "--index=i", *arguments])
    (calls,), limit, _, *others = main._searcher(options, "", ())
    assert (limit.batch, calls, *others) == expected


def test_a_taken_port_is_told_before_anything_is_loaded(capsys):
    with processes.bound("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        assert run_program(main, "--index=/nowhere", f"--port={port}") == 1
        assert f"--port={port}" in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run_program(main, "--index=i") == 1
    assert "prototrain[serve]" in capsys.readouterr().err


def test_two_processes_serve_reload_and_drain(shop, tmp_path, program, photo):
    """SIGHUP takes a new version at once; SIGTERM answers what was begun, exit code 0."""
    shutil.copytree(shop[0] / "i", tmp_path / "i")
    process = program.start(
        "retrieval.serve.main", "--index=i", "--workers=2", "--port=0", "--threads=1"
    )
    lines, answers, stop = [], [], threading.Event()
    reader = threading.Thread(target=lambda: lines.extend(process.stderr))
    reader.start()

    def served():
        return [re.search(r"http://127.0.0.1:\d+", line) for line in lines if "25 items" in line]

    try:
        deadline = time.monotonic() + 120
        while len(served()) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(served()) == 2, lines
        with client.Client(served()[0][0]) as search:
            while not search.ready():
                time.sleep(0.05)
            assert search.search(photo(3), k=1).results[0].product == "p3"
            index.remove(["images/3-0.png"], tmp_path / "i")
            process.send_signal(signal.SIGHUP)

            def taken():
                return sum("serves version 2" in line for line in lines)

            while taken() < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert taken() == 2, lines
            assert search.info().version == 2

        def ask():
            with httpx.Client(base_url=served()[0][0], timeout=60) as http:
                while not stop.is_set():
                    try:
                        answer = http.post("/v1/search", files={"image": photo(1)})
                        answers.append(answer.status_code)
                    except httpx.TransportError:
                        return  # no longer listening, or it closed an idle connection

        asking = threading.Thread(target=ask)
        asking.start()
        while len(answers) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        stop.set()
        asking.join()
        assert set(answers) == {200}
    finally:
        process.kill()
        reader.join()
        process.stdout.close()
        process.stderr.close()
