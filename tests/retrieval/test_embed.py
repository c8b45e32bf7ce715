"""The program `retrieval.embed`."""

import os
import pathlib
import subprocess
import sys

import pytest
from PIL import Image
from stores import run_program

from retrieval import embed
from retrieval.embeddings import store
from trainer import experiment

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def shop(tmp_path):
    """A folder with three images and a manifest of them."""
    lines = ["path,label,role"]
    for number, role in enumerate(("query", "catalogue", "catalogue")):
        Image.new("RGB", (40, 20), (60 * number, 0, 90)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,p,{role}")
    (tmp_path / "shop.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"saved_model": "m"}, "--checkpoint and --saved_model: give one of them"),
        ({"image_size": 64}, "--image_size: needs --saved_model"),
        ({"input_range": "0,1"}, "--input_range: needs --saved_model"),
        ({"output": ""}, "--output=DIR: name the folder of the store"),
        ({"columns": "path=file"}, "--columns has no effect: it names columns of --manifest"),
        ({"dataset": "trn"}, "--dataset has no effect: --folder or --manifest is embedded"),
        ({"folder": "", "where": "role=query"}, "--where has no effect: the model's own dataset"),
        ({"folder": "", "batch_size": 8}, "--batch_size has no effect: the model's own dataset"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(shop, monkeypatch, capsys, asked, said):
    monkeypatch.setattr(experiment, "locate", lambda *arguments: ("", "c"))
    given = {"output": f"{shop}/s", "checkpoint": "c", "folder": shop} | asked
    asking = ["--model=models.simple", *(f"--{k}={v}" for k, v in given.items())]
    assert run_program(embed, *asking) == 1
    assert capsys.readouterr().err.startswith(f"error: {said}")


@pytest.mark.parametrize("given", [["--folder=."], ["--saved_model=m"], ["--dataset=x"]])
def test_what_embeds_the_images_must_be_given(capsys, given):
    assert run_program(embed, *given, "--output=s") == 1
    assert capsys.readouterr().err.startswith(
        "error: Give the model that embeds images: --model=NAME"
    )


def test_the_command_line_needs_no_model(shop):
    import tensorflow as tf

    class Mean(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 8, 16, 3], tf.float32)])
        def serve(self, image):
            return {"embeddings": tf.reduce_mean(image, [1, 2])}

    module = Mean()
    tf.saved_model.save(module, f"{shop}/mean", signatures=module.serve)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "retrieval.embed", f"--saved_model={shop}/mean"),
            "--input_range=0,1",
            *(f"--manifest={shop}/shop.csv", "--where=role=catalogue", f"--output={shop}/s"),
        ],
        cwd=shop, env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 x 3 float32" in done.stdout
    source = store.manifest_of(shop / "s")["source"]
    assert source["preprocessing"] == "3 channels, scaled to 0,1"
