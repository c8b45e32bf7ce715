"""What is installed: dependencies as documented, and every file of the packages."""

import configparser
import fnmatch
import pathlib
import re
import tomllib

import setuptools

ROOT = pathlib.Path(__file__).parent.parent
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def lines(section, option):
    return [line for line in SETUP[section][option].splitlines() if line]


def test_build_md_lists_every_dependency_with_its_oldest_version():
    required = dict(line.split(">=") for line in lines("options", "install_requires"))
    required = {name: bounds.replace(",<", ", below ") for name, bounds in required.items()}
    table = re.findall(r"^\| ([a-z0-9-]+) \| (\d[^|]*) \|", (ROOT / "BUILD.md").read_text(), re.M)
    assert dict(table) == required


def test_every_file_of_the_packages_is_installed():
    include = lines("options.packages.find", "include")
    packages = setuptools.find_namespace_packages(str(ROOT), include=include)
    data = lines("options.package_data", "*")
    for top in ("trainer", "metriclearn", "retrieval", "models"):
        assert (ROOT / top / "py.typed").exists()
        for path in (ROOT / top).rglob("*"):
            if path.is_dir() or path.suffix in (".md", ".pyc"):
                continue
            owners = [p for p in path.relative_to(ROOT).parents if ".".join(p.parts) in packages]
            assert owners, f"no package holds {path}"
            inside = [path.relative_to(ROOT / owner).as_posix() for owner in owners]
            shipped = path.suffix == ".py" or any(
                fnmatch.fnmatchcase(name, pattern) for name in inside for pattern in data
            )
            assert shipped, f"package_data in setup.cfg leaves out {path}"


def test_pre_commit_runs_the_tools_of_ci():
    hooks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    ran = (ROOT / ".ci/run").read_text()
    assert hooks and all(f".tools/bin/{hook}" in ran for hook in hooks)


def test_what_is_type_checked_exists():
    checked = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["files"]
    assert checked and all(list(ROOT.glob(name)) for name in checked)
