"""The benchmarks' programs: tables, records and the page made of them. No test asserts a time."""

import ast
import importlib
import inspect
import json
import pathlib
import re
import sys

import numpy as np
import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks are programs, not an installed package

from benchmarks import figures, gpu, machine, page, peer, run  # noqa: E402

MACHINE = {"processor": "AMD EPYC", "make": "AMD", "cores": 2, "versions": {"numpy": "2.4"}}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "HISTORY", tmp_path / "history.jsonl")
    monkeypatch.setattr(page, "PAGE", tmp_path / "performance.md")
    return tmp_path


@pytest.mark.parametrize("name", figures.REACH)
def test_every_benchmark_keeps_the_contract(name):
    module = importlib.import_module(f"benchmarks.{name}")
    assert inspect.isgeneratorfunction(module.measure)
    parameters = inspect.signature(module.measure).parameters
    assert parameters["quick"].default is False
    assert all(type(p.default) in (bool, int, float, str) for p in parameters.values())


def test_the_readmes_command_is_found_and_has_the_models_steps(capsys):
    from benchmarks import first_command
    from models import simple
    from trainer import meters

    assert [words[0] for words in first_command.commands()] == ["train", "eval"]
    steps = simple.config["model.num_steps"], simple.config["model.batch_size"]
    assert steps == (first_command.STEPS, first_command.BATCH)
    meters.Progress(0, 10, 128).report(1, loss=0.5, learning_rate=0.1)
    assert len(re.findall(first_command.RATE, capsys.readouterr().out)) == 1


def test_benchmarks_that_documents_name_exist():
    names = set()
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        if path.name != "CHANGELOG.md":
            names |= set(re.findall(r"python -m benchmarks\.(\w+)", path.read_text("utf-8")))
    assert {"run", "gpu", "triplet_loss"} <= names
    assert all((ROOT / "benchmarks" / f"{name}.py").exists() for name in names), names


def test_rows_of_backbones_are_the_asked_ones_with_and_without_pytorch():
    from benchmarks import backbones

    cases = [
        (network, mode, precision)
        for network in backbones.NETWORKS
        for mode in backbones.WORK
        for precision in ("float32", "bfloat16")
    ]
    assert {backbones.row_of(*case) for case in cases} == set(backbones.RATIOS)
    times = {"ours": np.array([2.0, 3.0]), "bare": np.array([2.0, 2.0])}
    found = backbones.compared("row", times, 16)
    assert found.value is None and peer.MISSING in found.note and "bare 125.0" in found.note
    times |= {"eager": np.array([4.0, 1.0]), "compile": np.array([1.0, 6.0])}
    assert backbones.compared("row", times, 16).value == 2.5


def test_every_asked_row_is_named_once():
    names = [row for rows in figures.REACH.values() for row in rows]
    assert len(names) == len(set(names)) >= 20


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_what_a_benchmark_imports_exists(path):
    """Imports within functions, too: a benchmark that nobody ran for long must still start."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        ours = ("benchmarks", "metriclearn", "models", "retrieval", "trainer")
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ours:
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def test_a_figure_is_the_median_and_the_quartiles_of_the_rounds():
    found = figures.figure("row", [3, 1, 2, 5, 4])
    assert (found.value, found.low, found.high) == (3, 2, 4)
    assert figures.figure("row", [7]).low is None
    assert figures.amount(figures.figure("row", [1234.5], "MiB")) == "1,234 MiB"


@pytest.mark.parametrize(("value", "met"), [(1.2, True), (1.3, True), (1.1, False), (None, None)])
def test_a_bound_is_reached_from_its_side(value, met):
    found = figures.Figure("a", value, unit="s")
    assert figures.asked(found, {"x": {"a": (figures.AT_LEAST, 1.2)}}) == (">= 1.2 s", met)
    below = None if value is None else value <= 1.2
    assert figures.asked(found, {"x": {"a": (figures.AT_MOST, 1.2)}}) == ("<= 1.2 s", below)
    assert figures.asked(found, {"x": {}}) == ("", None)


def test_two_real_benchmarks_end_in_one_table(files, capfd, monkeypatch):
    """A peer that is not installed and a benchmark that fails are rows; the others go on."""
    row = "batch-hard over one product, B=8 D=4"
    over = "batch-hard, times as fast as pytorch-metric-learning, B=8 D=4"
    reach = {
        "samplers": {},
        "triplet_loss": {row: (figures.AT_MOST, 1e9), over: (figures.AT_LEAST, 5)},
        "broken": {"a row": (figures.AT_LEAST, 1)},
    }
    monkeypatch.setattr(figures, "REACH", reach)

    def start(name):
        if name == "broken":
            raise RuntimeError("failed: it has no photos")
        module = importlib.import_module(f"benchmarks.{name}")
        if name == "samplers":
            yield from module.measure(rounds=2, steps=2)
        else:
            yield from module._size(8, 4, 3, 1, quick=True, other=None)

    seconds = {"samplers": 2, "triplet_loss": 3, "broken": 1}
    result, whole = run.gather(list(reach), start, seconds, reach)
    assert whole and result["machine"]["cores"] and result["machine"]["versions"]["tensorflow"]
    rows = {each["name"]: each for each in result["figures"]}
    assert rows[row]["value"] > 0 and rows[row]["low"] <= rows[row]["value"] <= rows[row]["high"]
    assert rows[row]["asked"] == "<= 1e+09" and rows[row]["reached"] is True
    assert rows[over]["value"] is None and "python -m benchmarks.peer" in rows[over]["note"]
    assert rows["a row"]["note"] == "failed: it has no photos"
    assert sum(each["benchmark"] == "samplers" for each in result["figures"]) == 6
    assert "about 0.1 left" in capfd.readouterr().err

    result |= {"quick": True, "note": "a test"}
    assert run.finish(result, True, str(files / "out.json"), "1.0") == 0
    text = (files / "out.md").read_text()
    assert f"| {row} | " in text and text in page.one_run(result)
    assert (
        json.loads((files / "out.json").read_text())
        == result
        == {key: value for key, value in page.read()[0].items() if key != "version"}
    )


def test_ctrl_c_keeps_what_was_measured_and_records_nothing(files, capsys):
    def start(name):
        yield figures.Figure("first", 2.0)
        raise KeyboardInterrupt

    result, whole = run.gather(["a", "b"], start, {}, {"a": {}, "b": {}})
    assert not whole and [each["name"] for each in result["figures"]] == ["first", "a"]
    assert run.finish(result, whole, str(files / "out"), "1.0") == 130
    assert "first" in (files / "out.md").read_text() and not page.HISTORY.exists()
    assert "| first | 2.00 |" in capsys.readouterr().out


def test_a_benchmark_runs_in_a_process_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "good.py").write_text(
        'print("noise"); print(\'{"name": "row", "value": 1.5}\'); print("more noise")'
    )
    (tmp_path / "bad.py").write_text("raise SystemExit('no\\nphotos: give --manifest')")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    start = run.in_process_of_its_own("--quick", module="{}")
    assert list(start("good")) == [figures.Figure("row", 1.5)]
    (tmp_path / "killed.py").write_text("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(RuntimeError, match="^ended by SIGKILL$"):
        list(start("killed"))
    with pytest.raises(RuntimeError, match="^failed: photos: give --manifest$"):
        list(start("bad"))


def test_a_record_replaces_that_of_the_same_version_and_machine(files):
    for version, value in ("1.0", 1), ("1.1", 2), ("1.1", 3):
        row = {"name": "semi-hard over batch-hard, B=4096 D=512", "value": value}
        page.record({"version": version, "machine": MACHINE, "figures": [row]})
    page.record({"version": "1.1", "machine": MACHINE | {"make": "Intel", "processor": "Xeon"},
                 "figures": [row | {"value": 4}]})  # fmt: skip
    values = [record["figures"][0]["value"] for record in page.read()]
    assert values == [1, 3, 4]
    assert run.main(["--document"]) == 0
    text = page.PAGE.read_text()
    assert "| semi-hard over batch-hard, B=4096 D=512 | 3.00 | 4.00 | <= 1.6 |" in text
    assert "| semi-hard over batch-hard, B=4096 D=512 | 1.00 | 3.00 |" in text  # releases


def test_single_benchmarks_complete_a_version(files, monkeypatch):
    rows = {"search": [figures.Figure("fast", 1.0)], "ann": [figures.Figure("near", 2.0)]}
    monkeypatch.setattr(run, "in_process_of_its_own", lambda *_: rows.__getitem__)
    monkeypatch.setattr(machine, "described", lambda: MACHINE)
    assert run.main(["--record=1.0", "--only=search,ann"]) == 0
    rows["ann"] = [figures.Figure("near", 3.0)]
    assert run.main(["--record=1.0", "--only=ann"]) == 0
    assert run.main(["--document"]) == 0
    text = page.PAGE.read_text()
    assert "| fast | 1.00 |" in text and "| near | 3.00 |" in text
    assert "; search, ann alone;" in text and "; ann alone;" in text
    assert "Releases on" not in text


def test_the_committed_page_is_that_of_the_history():
    assert page.PAGE.read_text(encoding="utf-8") == page.written(page.read())


def test_the_history_names_rows_of_the_table():
    names = {row for rows in figures.REACH.values() for row in rows}
    for record in page.read():
        assert names & {row["name"] for row in record["figures"]}
        assert record["version"] and machine.in_words(record["machine"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only=speed"], "choose from train_step"),
        (["--output=/no/such/file"], "/no/such is no folder that can be written"),
    ],
)
def test_wrong_flags_are_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit):
        run.main(arguments)
    assert said in capsys.readouterr().err


def test_the_gpu_benchmark_runs_whole_on_cpu_devices(files, capfd, monkeypatch):
    monkeypatch.setattr(peer, "installed", lambda *_: None)
    arguments = ["--devices=cpu", "--quick", "--one_process", f"--output={files / 'gpu'}"]
    assert gpu.main(arguments) == 0
    rows = json.loads((files / "gpu.json").read_text())["figures"]
    assert {row["benchmark"] for row in rows} == set(gpu.PARTS)
    lacking = [row for row in rows if row["value"] is None and row["note"] != peer.MISSING]
    assert not lacking, lacking
    kinds = [f"{p}{x}" for p in ("float32", "bfloat16") for x in ("", ", XLA")]
    for title, limit in ("ResNet-50", "convolutions"), ("ViT-S/16", "products"):
        for kind in kinds:
            row = f"{title} train step, {kind}, share of bare {limit}"
            assert any(each["name"] == row for each in rows), row


def test_the_gpu_benchmark_says_that_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: [])
    with pytest.raises(RuntimeError, match="no GPU is visible; --devices=cpu"):
        gpu.scale_of("gpu", quick=True)
