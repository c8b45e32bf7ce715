"""Executes the notebooks beside it and keeps their outputs, without what differs between machines:

    python examples/notebooks.py

Needs `pip install -e '.[test,pretrained]'`. The tests execute them, too, and compare the code.
"""

import os
import pathlib
import re
import shutil
import sys
import tempfile

import nbclient
import nbformat

HERE = pathlib.Path(__file__).parent
NOTEBOOKS = sorted(HERE.glob("*.ipynb"))


def execute(path: pathlib.Path, folder: pathlib.Path) -> nbformat.NotebookNode:
    """Executes a notebook in a folder, which gets a copy of the shop.

    Args:
      path: the notebook.
      folder: where it runs, and leaves its files.

    Returns:
      The notebook with its outputs, stripped.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed.
    """
    shutil.copytree(HERE / "shop", folder / "shop")
    notebook = nbformat.read(path, as_version=4)
    programs = os.path.dirname(sys.executable)  # `!prototrain` is that of this Python
    kept = {name: os.environ.get(name) for name in ("PATH", "PYTHONPATH", "TF_CPP_MIN_LOG_LEVEL")}
    os.environ["PATH"] = os.pathsep.join([programs, os.environ["PATH"]])
    os.environ["PYTHONPATH"] = str(HERE.parent)
    try:
        nbclient.NotebookClient(
            notebook, timeout=600, resources={"metadata": {"path": str(folder)}}
        ).execute()
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    return stripped(notebook)


def stripped(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Removes times, the machine's logs and its Python version; keeps what a reader wants to see."""
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                if "text" in output:  # a terminal's colors
                    output.text = re.sub(r"\x1b\[[0-9;]*m", "", output.text)
                output.pop("transient", None)
    return notebook


if __name__ == "__main__":
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, pathlib.Path(folder))
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
