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
import traitlets.config

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
    path_of_programs = os.pathsep.join([programs, os.environ["PATH"]])
    environment = os.environ | {"PATH": path_of_programs, "PYTHONPATH": str(HERE.parent)}
    with tempfile.TemporaryDirectory() as sockets:
        # Ports that are found free may be taken by another program before the kernel starts.
        transport = {"transport": "ipc", "ip": f"{sockets}/kernel"}
        client = nbclient.NotebookClient(
            notebook,
            timeout=600,
            startup_timeout=300,
            iopub_timeout=60,  # a busy machine needs more than 4 s, the default, for last outputs
            resources={"metadata": {"path": folder}},
            config=traitlets.config.Config(KernelManager=transport),
        )
        client.execute(env=environment)
    return stripped(notebook)


def stripped(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Removes times, the machine's logs and its Python version."""
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            outputs = []
            for output in cell.outputs:
                output.pop("transient", None)
                if output.get("name") == "stderr" or output.get("data") == {"text/plain": ""}:
                    continue
                if "text" in output:
                    output.text = as_a_terminal_shows(output.text)
                    # A stream comes in as many parts as it happens to be read in.
                    if outputs and outputs[-1].get("name") == output.name:
                        outputs[-1].text += output.text
                        continue
                outputs.append(output)
            cell.outputs = outputs
    return notebook


def as_a_terminal_shows(text: str) -> str:
    """Text without colors and without the bars of a program, which it takes away at its end."""
    lines = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", text).replace("\r\n", "\n").split("\n")
    return "\n".join(line.rpartition("\r")[2] for line in lines if "━" not in line)


if __name__ == "__main__":
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, pathlib.Path(folder))
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
