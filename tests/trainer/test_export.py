"""Export: what is served equals what was trained."""

import json
import os
import pathlib
import re
import types

import crash
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_hub as hub
import toy
import toy_served

from trainer import checkpoints, export, files
from trainer.config import UserError

pytestmark = pytest.mark.numeric
v1 = tf.compat.v1


def by_hand(prefix, x, suffix):
    """The toy's prediction from the numbers in a checkpoint."""
    reader = tf.train.load_checkpoint(prefix)
    get = lambda name: reader.get_tensor(name + suffix).astype(np.float64)  # noqa: E731
    hidden = np.maximum(x @ get("hidden/kernel") + get("hidden/bias"), 0)
    return (hidden @ get("out/kernel") + get("out/bias"))[:, 0]


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_served_outputs_equal_the_checkpoint_at_any_batch_size(train, tmp_path, decay):
    folder = train(model=toy_served, keys={"model.ema_decay": decay})
    prefix = checkpoints.latest(f"{folder}/checkpoint")
    output = str(tmp_path / "served")
    note = export.export(toy_served, prefix, output, outputs=["prediction"])
    assert note["step"] == 20 and note["moving_averages"] == bool(decay)
    assert list(note["inputs"]) == ["x"]  # not y: the prediction does not depend on it
    suffix = "/ExponentialMovingAverage" if decay else ""
    for load in (tf.saved_model.load, hub.load):
        serve = load(output).signatures["serving_default"]
        for size in (1, 5):
            x = np.random.default_rng(size).normal(size=[size, 4]).astype(np.float32)
            served = serve(x=tf.constant(x))["prediction"].numpy()
            np.testing.assert_allclose(served, by_hand(prefix, x, suffix), rtol=1e-6, atol=1e-6)
    if decay:  # the averages differ from the weights, so serving the weights would have failed
        assert np.abs(by_hand(prefix, x, "") - by_hand(prefix, x, suffix)).max() > 1e-3


def test_the_program_exports_the_named_checkpoint_with_its_own_configuration(
    train, config, program, tmp_path
):
    folder = train(model=toy_served, keys={"trainer.checkpoint_save_interval": 10})
    checkpoint = f"--checkpoint={folder}/checkpoint/model-10"
    code, out, err = program("trainer.export", "--model=toy_served", checkpoint)
    assert code == 0, err
    output = pathlib.Path(folder, "export", "model-10")
    # TensorFlow 2.19 logs these two lines whatever it is told.
    noise = "WARNING: All log messages before absl::InitializeLog|I0000 .* mlir_graph_optimization"
    assert str(output) in out and not [x for x in err.splitlines() if not re.match(noise, x)]
    note = json.loads((output / export.NOTE).read_text())
    assert note["checkpoint"] == f"{folder}/checkpoint/model-10" and note["step"] == 10
    assert note["config"] == config.to_dict()
    assert note["code"]["packages"]["tensorflow"] == tf.__version__
    with v1.Session(graph=tf.Graph()) as session:
        signature = v1.saved_model.load(session, ["serve"], str(output)).signature_def
        assert set(signature["serving_default"].outputs) == {"prediction"}  # the last learned one
    assert sorted(os.listdir(output.parent)) == ["model-10"]


def test_an_export_is_replaced_only_when_told(train, tmp_path):
    folder = train(model=toy_served)
    prefix = checkpoints.latest(f"{folder}/checkpoint")
    output = tmp_path / "served"
    export.export(toy_served, prefix, output)
    with pytest.raises(UserError, match="served exists: replace it with --overwrite"):
        export.export(toy_served, prefix, output)
    export.export(toy_served, prefix, output, outputs=["hidden"], overwrite=True)
    note = json.loads((output / export.NOTE).read_text())
    assert list(note["outputs"]) == ["hidden"]
    assert sorted(os.listdir(tmp_path)) == ["experiments", "served"]
    with pytest.raises(UserError, match="experiments is not an export; it was not changed"):
        export.export(toy_served, prefix, tmp_path / "experiments", overwrite=True)
    assert checkpoints.latest(f"{folder}/checkpoint") == prefix


def fixed_batch(inputs, train_phase):
    x = v1.placeholder(tf.float32, [8, 4], "x")
    return {"embeddings": x * 2}


def no_inputs(inputs, train_phase):
    return {"embeddings": tf.zeros([3, 4])}


@pytest.mark.parametrize(
    "build, outputs, message",
    [
        (toy.build, [], r"toy.build\(inputs=None\) fails .* must make placeholders"),
        (toy_served.build, ["predicton"], "no output 'predicton'.*Did you mean 'prediction'"),
        (toy_served.build, ["loss"], "no output 'loss'"),
        (fixed_batch, [], r"'x' has shape \[8, 4\]"),
        (no_inputs, [], "embeddings depend on no placeholder"),
    ],
)
def test_what_cannot_be_served_is_named(config, tmp_path, build, outputs, message):
    model = types.SimpleNamespace(__name__="toy", build=build, config=config)
    with pytest.raises(UserError, match=message):
        export.export(model, "unused", tmp_path / "served", outputs=outputs)
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_export(train, tmp_path, monkeypatch):
    folder = train(model=toy_served)
    prefix = checkpoints.latest(f"{folder}/checkpoint")
    export.export(toy_served, prefix, tmp_path / "served")
    before = (tmp_path / "served" / export.NOTE).read_text()

    def full(path):
        raise OSError("No space left on device")

    monkeypatch.setattr(export, "sync", full)
    with pytest.raises(UserError, match=r"Cannot write .*served: No space left on device"):
        export.export(toy_served, prefix, tmp_path / "served", outputs=["hidden"], overwrite=True)
    assert (tmp_path / "served" / export.NOTE).read_text() == before
    assert sorted(os.listdir(tmp_path)) == ["experiments", "served"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "renames"])
def test_a_kill_between_any_two_steps_leaves_the_old_or_the_new_export(
    train, tmp_path, monkeypatch, exchange
):
    if not exchange:
        monkeypatch.setattr(files.ctypes, "CDLL", lambda *a, **k: (_ for _ in ()).throw(OSError))
    prefix = checkpoints.latest(train(model=toy_served) + "/checkpoint")
    folder = tmp_path / "out"

    def outputs():
        return list(json.loads((folder / "served" / export.NOTE).read_text())["outputs"])

    def export_as(name):
        export.export(toy_served, prefix, folder / "served", outputs=[name], overwrite=True)

    export_as("prediction")
    states = []
    for _ in crash.points(lambda: export_as("hidden"), monkeypatch):
        if (folder / "served").exists():
            states.append(outputs())
        else:
            assert not exchange  # between two renames; the next run heals it
        export_as("prediction")
        assert outputs() == ["prediction"] and os.listdir(folder) == ["served"]
    assert states[0] == ["prediction"] and states[-1] == ["hidden"] and len(states) > 10


def test_an_export_of_an_earlier_version_is_replaced_unless_others_keep_files_in_it(
    train, tmp_path
):
    prefix = checkpoints.latest(train(model=toy_served) + "/checkpoint")
    output = tmp_path / "served"
    export.export(toy_served, prefix, output)
    (output / files.MARK).unlink()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"also contains 'notes\.txt'; move it away first"):
        export.export(toy_served, prefix, output, overwrite=True)
    (output / "notes.txt").unlink()
    export.export(toy_served, prefix, output, outputs=["hidden"], overwrite=True)
    assert files.kind_of(output) == "export"
    assert sorted(os.listdir(tmp_path)) == ["experiments", "served"]
