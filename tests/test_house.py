"""The direction of imports between packages and rooms, and a test file for every module."""

import ast
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("trainer", "metriclearn", "retrieval", "models")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]

# The rooms of retrieval: each imports from itself and from those before it.
ROOMS = ("ranking", "embeddings", "catalogue", "evaluation", "reports", "serve")
# retrieval's tools, which import nothing of it and may be used by any room.
TOOLS = ("progress",)

# For each file, the first matching pattern says which modules of other packages it may import.
SIBLINGS = (
    (r"metriclearn/|trainer/", ()),
    (r"retrieval/progress\.py", ("trainer.notebook",)),
    (r"retrieval/(metrics|__init__)\.py|retrieval/ranking/", ()),
    (
        r"retrieval/embeddings/(embedder|texts)\.py",
        ("trainer", "metriclearn.datasets", "models.backbones.saved_model"),
    ),
    (r"retrieval/embeddings/", ("trainer", "metriclearn.datasets", "metriclearn.augment")),
    # Pages read image files as everything else does.
    (r"retrieval/reports/page\.py", ("trainer", "metriclearn.datasets.image_files")),
    # So do the server's queries and the images of what it finds.
    (
        r"retrieval/serve/(searcher|thumbnails)\.py",
        ("trainer", "metriclearn.datasets.image_files"),
    ),
    (r"retrieval/", ("trainer",)),
    (
        r"models/",
        (
            *("metriclearn", "retrieval.metrics"),
            *("trainer.config", "trainer.layers", "trainer.files", "trainer.helptext"),
            *("trainer.commandline", "trainer.program", "trainer.quiet"),
            "trainer.keras_model",
        ),
    ),
)
# Modules that have no test file of their name yet: they are tested by a neighbor's.
# Cached features are a store; a text tower is exported with the rules that make its token ids.
EXTRA = {
    "models/backbones/features.py": ("retrieval.embeddings",),
    "models/backbones/texts.py": ("retrieval.embeddings.tokens", "trainer.export"),
}


def imports(path):
    """Yields the modules that a file imports, anywhere in it, with the names taken from them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def within(module, packages):
    return any(module == name or module.startswith(f"{name}.") for name in packages)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_the_right_way(path):
    name = path.relative_to(ROOT).as_posix()
    allowed = next(allowed for pattern, allowed in SIBLINGS if re.match(pattern, name))
    allowed += EXTRA.get(name, ())
    own = name.split("/")[0]
    for module in imports(path):
        if module.split(".")[0] in PACKAGES and module.split(".")[0] != own:
            assert within(module, allowed), f"{name} imports {module}"
        if own == "retrieval" and module.startswith("retrieval."):
            assert within(module, rooms_before(name)), f"{name} imports {module}"


def rooms_before(name):
    """The modules of retrieval that one of its files may import."""
    room = name.split("/")[1].removesuffix(".py")
    if room == "metrics":
        return ["retrieval.ranking", "retrieval.progress"]
    if room in TOOLS:
        return []
    # `metrics` is the public face of `ranking`; programs, outside the rooms, may import all rooms
    # and `api`, which is the evaluation for Python.
    seen = ROOMS[: ROOMS.index(room) + 1] if room in ROOMS else (*ROOMS, "api")
    faces = () if room == "ranking" else ("metrics",)
    return [f"retrieval.{each}" for each in (*seen, *faces, *TOOLS)]


def test_metriclearn_needs_tensorflow_and_numpy_only():
    for path in sorted((ROOT / "metriclearn").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:  # module level: what an import costs
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                for name in names or [node.module]:
                    top = name.split(".")[0]
                    known = top in ("metriclearn", "tensorflow", "numpy")
                    # TensorFlow brings it; of these, only users of Keras import them.
                    known |= top == "keras" and path.stem in ("keras", "fitting")
                    assert known or top in sys.stdlib_module_names, (path, name)


def test_ranking_catalogue_and_evaluation_never_load_tensorflow():
    """Not even by what they import; nor do the public metrics."""
    modules = ["retrieval.metrics"]
    for room in ("ranking", "catalogue", "evaluation"):
        paths = sorted((ROOT / "retrieval" / room).glob("*.py"))
        assert len(paths) > 2
        modules += [f"retrieval.{room}.{p.stem}" for p in paths if p.stem != "__init__"]
    code = "".join(f"import {module}\n" for module in modules)
    code += "import sys\nassert 'tensorflow' not in sys.modules\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.stem != "__init__"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_every_module_has_a_test_file_of_its_name(path):
    tests = {file.stem for file in (ROOT / "tests" / path.relative_to(ROOT).parts[0]).rglob("*.py")}
    name = path.relative_to(ROOT)
    wanted = {f"test_{path.stem}", f"test_{path.parent.name}_{path.stem}"}
    if name.match("models/*/*.py") and path.parent.name != "backbones":
        wanted = {f"test_{path.parent.name}"}  # a model is one module to its users
    assert wanted & tests, f"{name} has no test file: tests/{name.parent}/test_{path.stem}.py"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_docstrings_describe_parameters_that_exist(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef) or node.args.kwarg:
            continue
        section = re.search(r"^Args:\n((?:  .*\n?|\n)*)", ast.get_docstring(node) or "", re.M)
        lines = textwrap.dedent(section[1]).splitlines() if section else []
        described = [m[1] for line in lines if (m := re.match(r"((?:\*?\w+(?:, )?)+):", line))]
        given = {part.arg for part in ast.walk(node.args) if isinstance(part, ast.arg)}
        names = {name.strip(" *") for line in described for name in line.split(",")}
        assert names <= given, f"{node.name}: {names - given}"
