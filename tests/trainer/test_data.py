"""A model's datasets: what is refused, and by which line."""

import numpy as np
import pytest
import tensorflow as tf
import toy
from runs import weights

from trainer import data
from trainer.config import UserError

v1 = tf.compat.v1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"datasets": lambda: {"vld": None}}, "has no 'trn' among vld"),
        ({"build": lambda inputs, train_phase: None}, "must return a ModelDict"),
        ({"build": lambda inputs, train_phase: {"x": inputs["x"]}}, "must set a scalar `loss`"),
        (
            {"datasets": lambda: {"trn": tf.data.Dataset.from_tensors({"x": np.zeros([3, 4])})}},
            "3 examples of 'x' per batch, but model.batch_size=16",
        ),
        (
            {"datasets": lambda: {"trn": tf.data.Dataset.from_tensors(np.zeros([16, 4]))}},
            "must yield dicts",
        ),
        (
            {"datasets": lambda: {"trn": toy._datasets(0)["trn"].take(3)}},
            r"ended\. Add \.repeat\(\)",
        ),
    ],
)
def test_a_model_that_breaks_its_contract(train, monkeypatch, change, message):
    monkeypatch.setattr(toy, "_datasets", toy.datasets, raising=False)
    for name, value in change.items():
        monkeypatch.setattr(toy, name, value)
    with pytest.raises(UserError, match=message):
        train()


def test_a_batch_of_another_size_is_refused(config):
    spec = {"x": tf.TensorSpec([16, 4]), "y": tf.TensorSpec([None])}
    data.check_batch(spec, config)
    config["model.batch_size"] = 8
    with pytest.raises(UserError, match="16 examples of 'x' per batch, but model.batch_size=8"):
        data.check_batch(spec, config)


def test_an_error_of_datasets_names_the_model(config, monkeypatch):
    def missing(start_step):
        raise FileNotFoundError(2, "No such file", "shop.csv")

    monkeypatch.setattr(toy, "datasets", missing)
    with tf.Graph().as_default(), pytest.raises(UserError, match=r"toy\.datasets\(\): .*shop\.csv"):
        data.load_datasets(toy, tf.constant(0, tf.int64))


def test_datasets_are_read_on_demand(config, monkeypatch):
    class Lazy(dict):
        def __getitem__(self, name):
            assert name != "retrieval_index"
            return super().__getitem__(name)

    monkeypatch.setattr(toy, "datasets", lambda: Lazy(trn=1, vld=2, retrieval_index=3))
    with tf.Graph().as_default():
        found, restartable = data.load_datasets(toy, tf.constant(0, tf.int64))
    assert found == {"trn": 1, "vld": 2} and not restartable


def test_errors_elsewhere_in_the_graph_pass_unchanged():
    with pytest.raises(tf.errors.OutOfRangeError), data.data_errors():
        raise tf.errors.OutOfRangeError(None, None, "queue closed [[{{node model/queue}}]]")


def test_an_unreadable_image_is_named_and_loses_nothing(program, tmp_path):
    code, out, err = program("trainer.main", "--model=toy", "--toy.bad_at=8")
    assert code == 1
    assert err.splitlines()[-1].startswith("error: ") and "Traceback" not in err
    assert "cannot read image 'shelf/42.jpg' (truncated): mend or remove it" in err
    folder = tmp_path / "experiments" / "toy"
    assert weights(folder)["global_step"] == 8
