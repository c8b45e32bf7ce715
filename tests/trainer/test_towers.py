"""N towers train as one: the same losses, the same gradients, nothing done twice."""

import numpy as np
import pytest
import tensorflow as tf
import toy

from trainer import layers, meters, towers
from trainer.config import Config, UserError

pytestmark = pytest.mark.numeric
v1 = tf.compat.v1


def losses(folder, split="trn"):
    return [line["loss"] for line in meters.read_metrics(folder) if line["split"] == split]


def test_four_towers_train_to_the_losses_of_one(train, any_toy):
    one, four = (losses(train(f"towers-{n}", any_toy, {"trainer.num_towers": n})) for n in (1, 4))
    assert len(one) == 20 and np.mean(one[-5:]) < np.mean(one[:5])
    np.testing.assert_allclose(four, one, rtol=1e-4)


def build_graph(model, config, count, **keys):
    """Builds a training graph of `count` towers: (replicas, loss, [(gradient, variable)])."""
    config.update(keys)
    devices = towers.devices(count)
    inputs = v1.data.make_one_shot_iterator(model.datasets()["trn"]).get_next()
    step = v1.train.create_global_step()
    replicas = towers.replicate(model.build, inputs, devices, train_phase=True, step=step)
    loss, _ = towers.loss_of(model, replicas, towers.gather(replicas))
    variables = v1.trainable_variables()
    return replicas, loss, towers.gradients(model, replicas, loss, variables, devices)


def test_each_tower_computes_on_its_own_device_and_shares_variables(config, any_toy):
    with tf.Graph().as_default() as graph:
        _, _, gradients = build_graph(any_toy, config, 4)
        names = {v.op.name for v in v1.global_variables()}
        assert names == {
            "global_step", "hidden/kernel", "hidden/bias", "out/kernel", "out/bias",
        }  # fmt: skip
        products = [op for op in graph.get_operations() if op.type == "MatMul"]
        by_device = {f"/device:CPU:{i}": 0 for i in range(4)}
        for op in products:
            by_device[op.device] += 1
    # Two layers, forward and back to kernel and input: the same work everywhere.
    assert set(by_device.values()) == {6}


def test_batch_norm_updates_and_summaries_exist_once(config):
    with tf.Graph().as_default() as graph:
        build_graph(toy, config, 4, **{"toy.norm": "batch"})
        assert len(graph.get_collection(v1.GraphKeys.UPDATE_OPS)) == 2
        assert len(graph.get_collection(v1.GraphKeys.SUMMARIES)) == 1
        device = v1.DeviceSpec.from_string(graph.get_collection(v1.GraphKeys.UPDATE_OPS)[0].device)
        assert device.device_index in (0, None)


def test_a_batch_that_towers_do_not_divide(config):
    with tf.Graph().as_default(), pytest.raises(UserError, match="size=16 is not a multiple of 3"):
        build_graph(toy, config, 3)


def test_short_batches_are_split_where_the_size_is_not_known():
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.int32, [None])
        parts = towers.split({"x": x}, 4)
        values = session.run([p["x"] for p in parts], {x: np.arange(6)})
    assert np.concatenate(values).tolist() == list(range(6))
    assert max(map(len, values)) == 2


def test_gradients_are_averaged_then_clipped(config):
    class Slopes:  # loss = w * x of one example a tower: the gradient is x itself
        __name__ = "slopes"

        @staticmethod
        def build(inputs, train_phase):
            w = v1.get_variable("w", [], initializer=v1.zeros_initializer())
            return layers.ModelDict(loss=tf.reduce_mean(w * inputs["x"]))

    with tf.Graph().as_default(), v1.Session(config=v1.ConfigProto(device_count={"CPU": 2})) as s:
        inputs, devices = {"x": tf.constant([3.0, -1.0])}, towers.devices(2)
        replicas = towers.replicate(Slopes.build, inputs, devices, train_phase=True, step=0)
        loss, _ = towers.loss_of(Slopes, replicas, towers.gather(replicas))
        pairs = towers.gradients(Slopes, replicas, loss, v1.trainable_variables(), devices)
        clipped = towers.clip(pairs, Config({"model.clip_gradients": True}))
        capped = towers.clip(pairs, Config({"model.clip_gradients.global_norm": 0.5}))
        s.run(v1.global_variables_initializer())
        # Clipping first would give (1 - 1) / 2 = 0.
        assert s.run([pairs[0][0], clipped[0][0], capped[0][0]]) == [1.0, 1.0, 0.5]
        low = Config({"model.clip_gradients": True, "model.clip_gradients.maxval": 0.25})
        assert s.run(towers.clip(pairs, low)[0][0]) == 0.25


def test_sparse_gradients_stay_sparse_and_average(config):
    class Table:
        __name__ = "table"

        @staticmethod
        def build(inputs, train_phase):
            w = v1.get_variable("w", [4, 2], initializer=v1.ones_initializer())
            return layers.ModelDict(loss=tf.reduce_mean(tf.gather(w, inputs["i"]) ** 2))

    def gradient(count):
        devices = towers.devices(count)
        proto = towers.session_config(Config(), towers.devices(count))
        with tf.Graph().as_default(), v1.Session(config=proto) as session:
            inputs = {"i": tf.constant([0, 2, 2, 3])}
            replicas = towers.replicate(Table.build, inputs, devices, train_phase=True, step=0)
            loss, _ = towers.loss_of(Table, replicas, towers.gather(replicas))
            ((g, _),) = towers.gradients(Table, replicas, loss, v1.trainable_variables(), devices)
            session.run(v1.global_variables_initializer())
            assert isinstance(g, tf.IndexedSlices)
            return session.run(tf.convert_to_tensor(g))

    np.testing.assert_allclose(gradient(2), gradient(1), rtol=1e-6)


def test_filters_choose_what_is_trained_and_decayed(config):
    with tf.Graph().as_default():
        build_graph(toy, config, 1)
        variables = v1.trainable_variables()

        def chosen(prefix, **keys):
            options = Config({f"{prefix}.{k}": v for k, v in keys.items()})
            return [v.op.name for v in towers.select(variables, options, prefix)]

        for prefix in ("model.trainable_variables", "model.weight_decay"):
            assert chosen(prefix, filter_regex="^out/") == ["out/kernel", "out/bias"]
            assert chosen(prefix, filter_fn=lambda v: "bias" in v.name) == [
                "hidden/bias",
                "out/bias",
            ]
            both = chosen(prefix, filter_regex="^out/", filter_fn=lambda v: "bias" in v.name)
            assert both == ["out/bias"]
            with pytest.raises(UserError, match=f"{prefix}.* choose no variable"):
                chosen(prefix, filter_regex="outt")
            with pytest.raises(UserError, match=rf"{prefix}.filter_regex='\('"):
                chosen(prefix, filter_regex="(")

        decay = Config({"model.weight_decay": 0.1})
        names = [v.op.name for v in towers.decayed(variables, decay)]
        assert names == ["hidden/kernel", "out/kernel"]
        assert towers.decayed(variables, Config()) == []


def test_initial_weights_depend_on_seed_and_name_only(config):
    def weights(count, seed):
        proto = towers.session_config(Config(), towers.devices(count))
        with tf.Graph().as_default(), v1.Session(config=proto) as session:
            v1.set_random_seed(seed)
            for _ in range(count):
                tf.constant(0)  # operations before the model must not matter
            build_graph(toy, config, count)
            session.run(v1.global_variables_initializer())
            return session.run({v.op.name: v for v in v1.trainable_variables()})

    one, four, other = weights(1, 0), weights(4, 0), weights(1, 1)
    for name in ("hidden/kernel", "out/kernel"):
        np.testing.assert_array_equal(one[name], four[name])
        assert not np.array_equal(one[name], other[name])


def test_moving_averages_are_read_where_asked(config):
    with tf.Graph().as_default(), v1.Session() as session:
        _, _, gradients = build_graph(toy, config, 1, **{"toy.dropout": 0.0})
        averages = v1.train.ExponentialMovingAverage(0.5)
        variables = v1.trainable_variables()
        update = averages.apply(variables)
        inputs = {"x": tf.ones([2, 4]), "y": tf.zeros([2])}
        plain, averaged = (
            towers.replicate(
                toy.build, inputs, ["/cpu:0"], train_phase=False, averages=a
            )[0].prediction
            for a in (None, averages)
        )  # fmt: skip
        session.run(v1.global_variables_initializer())
        before = session.run(plain)
        for v in variables:
            v.load(np.zeros(v.shape, np.float32), session)
        np.testing.assert_array_equal(session.run(plain), 0)
        np.testing.assert_allclose(session.run(averaged), before, rtol=1e-6)
        session.run(update)
        assert not np.allclose(session.run(averaged), before)


@pytest.mark.parametrize("has", [True, False])
def test_auto_takes_bfloat16_on_a_cpu_that_is_faster_so(monkeypatch, has):
    monkeypatch.setattr(towers, "_computes_in_bfloat16", lambda: has)
    config = Config({"trainer.mixed_precision": "auto"})
    rewrites = towers.session_config(config, ["/device:CPU:0"]).graph_options.rewrite_options
    expected = rewrites.ON if has else rewrites.DEFAULT
    assert rewrites.auto_mixed_precision_onednn_bfloat16 == expected
    rewrites = towers.session_config(config, ["/device:GPU:0"]).graph_options.rewrite_options
    assert rewrites.auto_mixed_precision == rewrites.DEFAULT


def test_what_makes_training_wrong_is_refused(monkeypatch):
    monkeypatch.setenv("TF_ONEDNN_ASSUME_FROZEN_WEIGHTS", "1")
    with pytest.raises(UserError, match="Unset it to train"):
        towers.session_config(Config(), ["/device:CPU:0"])


def test_session_follows_the_configuration():
    config = Config({"trainer.intra_op_threads": 3, "trainer.inter_op_threads": 2})
    proto = towers.session_config(config, towers.devices(4))
    assert (proto.intra_op_parallelism_threads, proto.inter_op_parallelism_threads) == (3, 2)
    assert proto.device_count["CPU"] == 4
    rewrites = proto.graph_options.rewrite_options
    assert rewrites.auto_mixed_precision_onednn_bfloat16 == rewrites.DEFAULT
    config.update({"trainer.mixed_precision": "bfloat16", "trainer.xla": True})
    proto = towers.session_config(config, ["/device:CPU:0"])
    rewrites = proto.graph_options.rewrite_options
    assert rewrites.auto_mixed_precision_onednn_bfloat16 == rewrites.ON
    assert proto.graph_options.optimizer_options.global_jit_level == v1.OptimizerOptions.ON_1
    with pytest.raises(UserError, match="float16 on a GPU"):
        towers.session_config(config, ["/device:GPU:0"])
    config["trainer.mixed_precision"] = "float16"
    proto = towers.session_config(config, ["/device:GPU:0"])
    assert proto.graph_options.rewrite_options.auto_mixed_precision == rewrites.ON
    with pytest.raises(UserError, match="bfloat16 on a CPU"):
        towers.session_config(config, ["/device:CPU:0"])


def test_spread_tells_a_collapse():
    with tf.Graph().as_default(), v1.Session() as session:
        apart = towers.embedding_spread(tf.constant([[1.0, 0], [-1, 0], [0, 1], [0, -1]]))
        point = towers.embedding_spread(tf.constant([[3.0, 4.0]] * 5))
        assert session.run([apart, point]) == [1.0, 0.0]
