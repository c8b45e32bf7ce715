"""The direction of imports between packages, and documents that must agree with the code."""

import ast
import pathlib
import re

import pytest

from trainer import schema

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("trainer", "metriclearn", "retrieval", "models")

# For each file, the first matching pattern says which other packages' modules it may import.
ALLOWED = (
    (r"metriclearn/", ()),
    (r"trainer/", ()),
    (r"retrieval/(metrics|index|exact)\.py", ()),
    (r"retrieval/", ("trainer",)),
    (
        r"models/",
        ("metriclearn", "retrieval.metrics", "trainer.config", "trainer.layers", "trainer.quiet"),
    ),
)
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path):
    """Yields the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_the_right_way(path):
    name = path.relative_to(ROOT).as_posix()
    allowed = next(allowed for pattern, allowed in ALLOWED if re.match(pattern, name))
    own = name.split("/")[0]
    for module in imports(path):
        if module.split(".")[0] in PACKAGES and module.split(".")[0] != own:
            ok = any(module == a or module.startswith(a + ".") for a in allowed)
            assert ok, f"{name} imports {module}"


def test_metriclearn_needs_tensorflow_and_numpy_only():
    for path in sorted((ROOT / "metriclearn").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:  # module level: what an import costs
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                for name in names or [node.module]:
                    top = name.split(".")[0]
                    known = top in ("metriclearn", "tensorflow", "numpy")
                    assert known or top in __import__("sys").stdlib_module_names, (path, name)


def test_ranking_needs_no_tensorflow():
    for name in ("metrics", "index"):
        modules = list(imports(ROOT / "retrieval" / f"{name}.py"))
        assert not any(m.split(".")[0] == "tensorflow" for m in modules)


def table_of_keys():
    lines = []
    for title, keys in schema.SECTIONS.items():
        lines += [f"### {title}", "", "| dtype | setting | default | description |"]
        lines.append("|---|---|---|---|")
        for key in keys:
            default = "" if key.default in (None, "", []) else f"`{key.default}`"
            doc = key.doc.replace("|", "\\|")
            if key.choices:
                doc += " One of " + ", ".join(f"`{c}`" for c in key.choices if c) + "."
            lines.append(f"| `{key.type}` | `{key.name}` | {default} | {doc} |")
        lines.append("")
    return "\n".join(lines)


def test_readme_lists_every_key_as_the_code_declares_it():
    assert table_of_keys() in (ROOT / "README.md").read_text()


def test_readme_model_is_complete_and_builds(tmp_path, program):
    text = (ROOT / "README.md").read_text()
    code = re.search(r"<!-- model -->\n```python\n(.*?)```", text, re.S)[1]
    (tmp_path / "mine.py").write_text(code)
    status, out, err = program("trainer.main", "--model=mine", "--model.num_steps=3")
    assert status == 0 and "done: step 3" in out, err
