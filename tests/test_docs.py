"""Documents that must agree with the code: README, guides, and the commands in them."""

import ast
import pathlib
import re
import shlex
import types

import pytest

import metriclearn
from trainer import cli
from trainer.commandline import expand_flag_files

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = [
    *(ROOT / "README.md", ROOT / "BUILD.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "models").rglob("README.md")),
]
RECIPES = sorted((ROOT / "models").rglob("*.flags"))
VERB_OF = {module: verb for verb, (module, _) in cli.VERBS.items()}
ABSL = {"help", "helpfull", "flagfile"}


def commands(path):
    """Yields the commands of a document that run our programs, as [verb, argument, ...]."""
    text = path.read_text()
    if path.suffix == ".flags":
        code = re.findall(r"^# +(prototrain .*|python -m .*)", text, re.M)
    else:
        blocks = re.findall(r"^```(?:\w*)\n(.*?)^```", text, re.M | re.S)
        blocks += re.findall(r"^ {4}((?:prototrain|python -m) .*)", text, re.M)
        blocks += re.findall(r"`((?:prototrain|python -m) [^`]+)`", text)
        code = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in code:
        for part in re.split(r"&&|\|\|", line):
            words = shlex.split(part, comments=True) if "prototrain" in part or "-m" in part else []
            words = [word.strip("[]") for word in words]
            if words[:2] == ["python", "-m"] and words[2] in VERB_OF:
                words = ["prototrain", VERB_OF[words[2]], *words[3:]]
            if words[:2] == ["prototrain", "launch"] and "--" in words:
                end = words.index("--")
                yield ["train", *words[end + 1 :]]
                words = words[:end]
            if words[:1] == ["prototrain"]:
                yield words[1:]


def known_flags(text):
    return set(re.findall(r"^  (?:-\w, )?--([^:=\s]+)[:=]", text, re.M))


@pytest.mark.parametrize("path", [*DOCUMENTS, *RECIPES], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_names_a_verb_and_flags_that_exist(path, helps, monkeypatch):
    monkeypatch.chdir(ROOT)
    for verb, *arguments in commands(path):
        if verb in ("VERB", "--help", "…"):
            continue
        assert verb in cli.VERBS, f"{path.name}: prototrain {verb}"
        arguments = [a for a in arguments if a not in ("--flagfile=my.flags", "...")]
        given = [a for a in expand_flag_files(arguments) if a.startswith("-") and a != "-"]
        models = [a.partition("=")[2] for a in given if re.match(r"--?m(odel)?=", a)]
        model = next((m for m in models if m in helps[verb]), "helpfull")
        known = known_flags(helps[verb][model]) | ABSL
        for flag in given:
            name = flag.lstrip("-").partition("=")[0]
            mine = verb == "run"  # an action defines flags of its own
            assert mine or name in known or name.removeprefix("no") in known, (
                f"{path.name}: prototrain {verb} has no flag {flag}"
            )


def test_the_documents_have_commands_to_check():
    found = [command for path in DOCUMENTS for command in commands(path)]
    assert len(found) > 40 and {"train", "eval", "embed", "index", "audit"} <= {c[0] for c in found}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_links_between_documents_lead_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_files_of_the_project_that_documents_name_exist():
    for path in DOCUMENTS[:-1]:
        if path.name == "CHANGELOG.md":  # names what was there
            continue
        for name in re.findall(
            r"`((?:trainer|metriclearn|retrieval|models|tests|benchmarks|docs)/[\w/.-]+)`",
            path.read_text(),
        ):
            assert (ROOT / name).exists(), f"{path.name}: {name}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_in_documents_names_modules_and_attributes_that_exist(path):
    for code in re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S):
        tree = ast.parse(code.replace("…", "..."))
        names = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom | ast.Import) and _is_ours(node):
                exec(ast.unparse(node), names)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                value = names.get(node.value.id)
                ours = isinstance(value, types.ModuleType | type)
                assert not ours or hasattr(value, node.attr), f"{path.name}: {ast.unparse(node)}"


def _is_ours(node):
    first = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
    return first.split(".")[0] in ("metriclearn", "models", "retrieval", "trainer")


def test_the_api_reference_covers_the_public_names_of_metriclearn():
    page = (ROOT / "docs" / "api" / "metriclearn.md").read_text()
    for name in metriclearn.__all__:
        home = getattr(getattr(metriclearn, name), "__module__", None)
        line = f"::: {home}\n"
        assert home is None or line in page, f"docs/api/metriclearn.md lacks {line}"


def test_readme_model_is_complete_and_builds(tmp_path, program):
    text = (ROOT / "README.md").read_text()
    code = re.search(r"<!-- model -->\n```python\n(.*?)```", text, re.S)[1]
    (tmp_path / "mine.py").write_text(code)
    status, out, err = program("trainer.main", "--model=mine", "--model.num_steps=3")
    assert status == 0 and "done: step 3" in out, err
