"""An experiment's folder: names, marks, starting over, saved configuration, provenance."""

import json
import os
import pathlib
import subprocess
import types

import crash
import pytest
import toy

from trainer import checkpoints, experiment, files
from trainer.config import UserError


def tree(folder):
    """Paths of all files in a folder, without marks and locks."""
    found = (p for p in pathlib.Path(folder).rglob("*") if p.is_file())
    names = {p.relative_to(folder).as_posix() for p in found}
    return {n for n in names if os.path.basename(n) not in (files.MARK, files.LOCK)}


def made(folder, marked=True, steps=(10, 20)):
    """An experiment's files, without the training."""
    for name in ("checkpoint/best", "summaries/trn", "flight"):
        (folder / name).mkdir(parents=True)
    for step in steps:
        for ending in ("index", "data-00000-of-00001"):
            (folder / "checkpoint" / f"model-{step}.{ending}").write_text("")
    (folder / "checkpoint" / "checkpoint").write_text("")
    (folder / "checkpoint" / "best" / "model-10.index").write_text("")
    (folder / "config.json").write_text(toy.config.to_json())
    for name in ("config.txt", "metrics.jsonl", "code-0.diff", "flight/step-3.npz"):
        (folder / name).write_text("")
    (folder / "summaries" / "trn" / "events.out.tfevents.1.host").write_text("")
    (folder / "provenance.json").write_text("[]")
    if marked:
        for path, kind in ((folder, "experiment"), (folder / "checkpoint", checkpoints._KIND)):
            (path / files.MARK).write_text(json.dumps({"kind": kind}))
    return folder


@pytest.fixture
def folder(config):
    return pathlib.Path(config["trainer.experiment_base_dir"]) / "toy"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../toy", "/tmp"])
def test_a_name_is_one_folder(config, folder, name):
    made(folder)
    before = tree(folder.parent)
    config["trainer.experiment_name"] = name
    with (
        pytest.raises(UserError, match=r"trainer\.experiment_name=.* must be the name of a folder"),
        experiment.opened(config, fresh=True, yes=True),
    ):
        pass
    assert tree(folder.parent) == before


@pytest.mark.parametrize("name", ["a\0b", "\udcff"])
def test_a_name_that_tensorflow_cannot_write_is_refused(config, name):
    config["trainer.experiment_name"] = name
    with pytest.raises(UserError, match="must be UTF-8 without a null byte"):
        experiment.directory(config)


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "earlier_version"])
def test_an_experiment_resumes_and_starts_over(config, folder, marked):
    made(folder, marked)
    before = tree(folder)
    with experiment.opened(config):
        assert files.kind_of(folder) == "experiment"
    assert tree(folder) == before
    with experiment.opened(config, fresh=True, yes=True):
        assert tree(folder) == set() and checkpoints.latest(folder / "checkpoint") is None


def test_a_fresh_start_keeps_and_names_what_training_does_not_write(config, folder, capsys):
    made(folder)
    for name in ("notes.txt", "checkpoint/mine.txt", "analysis/model-20.json", "summaries/x.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    for _ in range(2):  # also a second time
        with experiment.opened(config, fresh=True, yes=True):
            kept = {"notes.txt", "checkpoint/mine.txt", "analysis/model-20.json", "summaries/x.csv"}
            assert tree(folder) == kept
    assert "kept 4 files" in capsys.readouterr().out
    (folder / "metrics.jsonl").write_text("")
    with experiment.opened(config):
        assert (folder / "metrics.jsonl").exists()


def test_a_folder_of_others_is_neither_written_nor_cleared(config, folder):
    folder.mkdir(parents=True)
    for name in ("config.json", "model.py", ".lock"):
        (folder / name).write_text("{}")
    for fresh in (False, True):
        with (
            pytest.raises(UserError, match=r"toy: holds 'config\.json' and is not the folder"),
            experiment.opened(config, fresh=fresh, yes=True),
        ):
            pass
    assert sorted(os.listdir(folder)) == [".lock", "config.json", "model.py"]
    assert (folder / ".lock").read_text() == "{}"


def test_a_kill_between_any_two_steps_of_starting_over_is_finished_by_the_next_start(
    config, folder, tmp_path, monkeypatch
):
    def fresh():
        with experiment.opened(config, fresh=True, yes=True):
            pass

    killed = 0
    made(folder)
    for count in crash.points(fresh, monkeypatch):
        old = checkpoints.latest(folder / "checkpoint")
        with experiment.opened(config):
            if old:
                assert len(tree(folder)) == 13 and old.endswith("model-20")
            else:
                assert tree(folder) == set()
        killed += 1
        os.rename(folder, tmp_path / f"old-{count}")
        made(folder)
    assert killed > 15


def test_fresh_asks_before_it_deletes(train, config):
    folder = train()
    with (
        pytest.raises(UserError, match="nothing was deleted"),
        experiment.opened(config, fresh=True, ask=lambda question: "no"),
    ):
        pass
    assert checkpoints.steps(f"{folder}/checkpoint") == [20]
    train(fresh=True, yes=True, keys={"model.num_steps": 3})
    assert checkpoints.steps(f"{folder}/checkpoint") == [3]
    assert len(json.loads(pathlib.Path(folder, "provenance.json").read_text())) == 1


@pytest.mark.parametrize("stdin", [subprocess.DEVNULL, None], ids=["empty", "closed"])
def test_fresh_without_a_terminal_needs_yes(program, tmp_path, train, stdin):
    train()
    close = {"stdin": stdin, "preexec_fn": None if stdin else lambda: os.close(0)}
    process = program.start("trainer.main", "--model=toy", "--fresh", **close)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 1 and "confirm with --yes" in err and "Traceback" not in err
    assert checkpoints.steps(tmp_path / "experiments" / "toy" / "checkpoint") == [20]


def test_a_home_folder_is_expanded(config, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config["trainer.experiment_base_dir"] = "~/runs"
    assert experiment.directory(config) == str(tmp_path / "runs" / "toy")
    assert config.to_dict()["trainer.experiment_base_dir"] == "~/runs"  # stored as it was given
    (tmp_path / "model-3.index").write_text("")
    assert checkpoints.find("~/model-3") == str(tmp_path / "model-3")


def test_the_best_checkpoint_is_used_where_one_is_kept(config, folder):
    made(folder)  # steps 10 and 20; the best is step 10
    prefix = experiment.locate(toy, ())[1]
    assert prefix == experiment.locate(toy, (), "best")[1]
    assert experiment.describe(prefix).endswith("best on validation, step 10; the last is step 20")
    last = experiment.locate(toy, (), "last")[1]
    assert experiment.describe(last) == f"checkpoint: {last}" and last.endswith("model-20")
    (folder / "checkpoint" / "best" / "model-10.index").unlink()
    assert experiment.locate(toy, ())[1] == last
    with pytest.raises(UserError, match="keeps no best checkpoint.*--checkpoint=last"):
        experiment.locate(toy, (), "best")


# ---------------------------------------------------------------------------- configuration


def test_a_foreign_configuration_does_not_import_code(config, folder, tmp_path, monkeypatch):
    made(folder)
    (tmp_path / "evil_module.py").write_text("open('ran', 'w').close()\ndef fn(v): return True\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    key = "model.trainable_variables.filter_fn"
    saved = json.loads(toy.config.to_json()) | {key: "evil_module:fn"}
    (folder / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match=rf"{key}=evil_module:fn.*--allow_code"):
        experiment.locate(toy, ())
    experiment.restore_config(toy, {key})  # set on the command line: the saved one is not used
    assert not os.path.exists("ran")
    experiment.restore_config(toy, (), allow_code=True)
    assert config[key](None) and os.path.exists("ran")


def test_functions_of_the_model_itself_are_restored(config, folder, monkeypatch):
    made(folder)
    key = "model.trainable_variables.filter_fn"
    for name, allowed in (("toy:is_kernel", True), ("toy:tf.io.gfile.remove", False)):
        saved = json.loads(toy.config.to_json()) | {key: name}
        (folder / "config.json").write_text(json.dumps(saved))
        if allowed:
            experiment.restore_config(toy, ())
            assert config.to_dict()[key] == name
            config[key] = None
        else:
            with pytest.raises(UserError, match="names code"):
                experiment.restore_config(toy, ())


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_damaged_configuration_is_named(folder, config, text):
    made(folder)
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.json.*repair the file or move it away"):
        experiment.read_config(folder)


# ---------------------------------------------------------------------------- provenance


def start(folder, model):
    experiment.write_provenance(str(folder), model, 0, ["/device:CPU:0"], "f00")
    return json.loads((folder / "provenance.json").read_text())[-1]


def test_uncommitted_latin_1_is_kept_byte_for_byte(tmp_path, monkeypatch):
    code = tmp_path / "code"
    code.mkdir()
    git = ["git", "-C", str(code), "-c", "user.name=a", "-c", "user.email=b"]
    (code / "model.py").write_bytes(b"# caf\xe9\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    (code / "model.py").write_bytes(b"# th\xe9\n")
    files.claim(tmp_path / "toy", "experiment")
    model = types.SimpleNamespace(__name__="model", __file__=str(code / "model.py"))
    entry = start(tmp_path / "toy", model)
    assert b"+# th\xe9" in (tmp_path / "toy" / entry["git_diff"]).read_bytes()
    assert len(entry["git_commit"]) == 40


def test_a_model_without_a_file_has_a_provenance(tmp_path):
    files.claim(tmp_path, "experiment")
    assert start(tmp_path, types.SimpleNamespace(__name__="cell"))["model"] == "cell"
    assert start(tmp_path, types.SimpleNamespace(__name__="cell", __file__=None))["model"] == "cell"


def test_provenance_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, capsys):
    files.claim(tmp_path, "experiment")
    monkeypatch.setattr(experiment, "_git", lambda *a: 1 / 0)
    experiment.write_provenance(str(tmp_path), toy, 0, [], "f00")
    assert "warning: without provenance.json (ZeroDivisionError" in capsys.readouterr().err


def test_a_kill_between_any_two_steps_of_the_provenance_leaves_it_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "_git", lambda folder, what, *more: b"text\n")

    def two_starts():
        for _ in range(2):
            experiment.write_provenance(str(folder), toy, 0, [], "f00")

    files.claim(folder := tmp_path / "0", "experiment")
    for count in crash.points(two_starts, monkeypatch):
        monkeypatch.setattr(experiment, "_git", lambda folder, what, *more: None)
        start(folder, toy)
        monkeypatch.setattr(experiment, "_git", lambda folder, what, *more: b"text\n")
        starts = json.loads((folder / "provenance.json").read_text())
        diffs = {entry["git_diff"] for entry in starts} - {None}
        assert diffs == {name for name in os.listdir(folder) if name.startswith("code-")}
        files.claim(folder := tmp_path / str(count + 1), "experiment")
    assert count >= 4
