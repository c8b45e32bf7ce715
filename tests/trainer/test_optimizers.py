"""Every optimizer against its own update rule in NumPy, float64."""

import numpy as np
import pytest
import tensorflow as tf

from trainer import optimizers
from trainer.config import Config, UserError

pytestmark = pytest.mark.numeric
v1 = tf.compat.v1
RATE, STEPS, DECAY = 0.1, 4, 0.03
START = np.array([[1.0, -2.0], [0.5, 3.0]])
TARGET = np.array([[0.3, 0.1], [-1.0, 2.0]])


def gradient(w):
    return 2 * (w - TARGET)


def run(method, sparse=False, **options):
    config = Config({"model.optimizer.method": method, "model.weight_decay": DECAY})
    config.update({f"model.optimizer.{method}.{k}": v for k, v in options.items()})
    with tf.Graph().as_default(), v1.Session() as session:
        w = v1.get_variable("w", initializer=tf.constant(START, tf.float32))
        grad = 2 * (w - tf.constant(TARGET, tf.float32))
        if sparse:
            grad = tf.IndexedSlices(grad[:1], tf.constant([0]), tf.constant([2, 2]))
        optimizer = optimizers.create(config, tf.constant(RATE), [w])
        step = v1.train.create_global_step()
        update = optimizer.apply_gradients([(grad, w)], step)
        session.run(v1.global_variables_initializer())
        for _ in range(STEPS):
            session.run(update)
        assert session.run(step) == STEPS
        return session.run(w)


def sgd(w):
    for _ in range(STEPS):
        w = w - RATE * gradient(w)
    return w


def msgd(w, momentum, nesterov):
    m = 0
    for _ in range(STEPS):
        g = gradient(w)
        m = momentum * m + g
        w = w - RATE * (g + momentum * m if nesterov else m)
    return w


def adam(w, beta1, beta2, epsilon):
    m = v = 0
    for t in range(1, STEPS + 1):
        g = gradient(w)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        # TensorFlow's epsilon is the paper's epsilon-hat: added before the bias correction.
        rate = RATE * np.sqrt(1 - beta2**t) / (1 - beta1**t)
        w = w - rate * m / (np.sqrt(v) + epsilon)
    return w


def rmsprop(w, decay, momentum, epsilon):
    s, m = 1, 0
    for _ in range(STEPS):
        g = gradient(w)
        s = decay * s + (1 - decay) * g * g
        m = momentum * m + RATE * g / np.sqrt(s + epsilon)
        w = w - m
    return w


def adamw(w, beta1, beta2, epsilon, layerwise=False, grad=gradient):
    m = v = 0
    for t in range(1, STEPS + 1):
        g = grad(w)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        update = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + epsilon) + DECAY * w
        scale = np.linalg.norm(w) / np.linalg.norm(update) if layerwise else 1
        w = w - RATE * scale * update
    return w


@pytest.mark.parametrize(
    "method, options, expected",
    [
        ("sgd", {}, sgd),
        ("msgd", {"momentum": 0.8}, lambda w: msgd(w, 0.8, False)),
        ("msgd", {"momentum": 0.8, "use_nesterov": True}, lambda w: msgd(w, 0.8, True)),
        (
            "adam",
            {"beta1": 0.8, "beta2": 0.9, "epsilon": 0.01},
            lambda w: adam(w, 0.8, 0.9, 0.01),
        ),
        (
            "rmsprop",
            {"decay": 0.8, "momentum": 0.5, "epsilon": 0.01},
            lambda w: rmsprop(w, 0.8, 0.5, 0.01),
        ),
        (
            "adamw",
            {"beta1": 0.8, "beta2": 0.9, "epsilon": 0.01},
            lambda w: adamw(w, 0.8, 0.9, 0.01),
        ),
        (
            "lamb",
            {"beta1": 0.8, "beta2": 0.9, "epsilon": 0.01},
            lambda w: adamw(w, 0.8, 0.9, 0.01, layerwise=True),
        ),
    ],
)
def test_update_rule(method, options, expected):
    np.testing.assert_allclose(run(method, **options), expected(START), rtol=2e-5)


def test_sparse_gradient_counts_as_zero_elsewhere():
    def first_row(w):
        return gradient(w) * [[1], [0]]

    expected = adamw(START, 0.9, 0.999, 1e-8, grad=first_row)
    # In float32 1 - 0.999 is off by up to 2^-24 / 0.001 of itself, and with it every step.
    atol = STEPS * RATE * 2.0**-24 / (1 - 0.999)
    np.testing.assert_allclose(run("adamw", sparse=True), expected, rtol=2e-5, atol=atol)


@pytest.mark.parametrize("method", ["msgd", "adam", "lamb"])
def test_learning_rate_factor_is_for_the_variables_that_its_filter_chooses(method):
    def trained(factor, rate, names=("slow/w", "w")):
        config = Config(
            {
                "model.optimizer.method": method,
                "model.weight_decay": DECAY,
                "model.learning_rate_factor": factor,
                "model.learning_rate_factor.filter_regex": "^slow/",
            }
        )
        with tf.Graph().as_default(), v1.Session() as session:
            start = tf.constant(START, tf.float32)
            variables = [v1.get_variable(name, initializer=start) for name in names]
            pairs = [(2 * (w - tf.constant(TARGET, tf.float32)), w) for w in variables]
            step = v1.train.create_global_step()
            optimizer = optimizers.create(config, tf.constant(rate), variables)
            update = optimizer.apply_gradients(pairs, step)
            session.run(v1.global_variables_initializer())
            for _ in range(STEPS):
                session.run(update)
            assert session.run(step) == STEPS
            return session.run(variables)

    slow, fast = trained(0.25, RATE)
    (expected,) = trained(1.0, 0.25 * RATE, ["w"])
    np.testing.assert_allclose(slow, expected, rtol=1e-6)
    np.testing.assert_array_equal(fast, trained(1.0, RATE, ["w"])[0])
    (alone,) = trained(0.25, RATE, ["slow/w"])
    np.testing.assert_array_equal(alone, slow)


def test_learning_rate_factor_of_zero_and_a_filter_that_chooses_nothing_are_refused():
    config = Config({"model.learning_rate_factor": 0.0})
    with pytest.raises(UserError, match="trainable_variables.filter_regex"):
        optimizers.create(config, tf.constant(RATE))
    config.update({"model.learning_rate_factor": 0.5})
    config["model.learning_rate_factor.filter_regex"] = "^backbone/"
    with tf.Graph().as_default(), pytest.raises(UserError, match="learning_rate_factor.*: head"):
        head = v1.get_variable("head", [])
        step = v1.train.create_global_step()
        optimizers.create(config, tf.constant(RATE)).apply_gradients([(head, head)], step)


@pytest.mark.parametrize(
    ("names", "above"),
    [
        ("v/cls_token v/layers_0/gamma v/layers_1/fc1 v/layers_10/fc1 v/ln e", [4, 3, 2, 1, 0, 0]),
        ("c/stem c/stage_0_block_0 c/stage_0_block_1 c/block_1 c/stage_1_block_0 c/norm",
         [5, 4, 3, 2, 1, 0]),
        ("r/conv1_conv r/conv2_block1_1_conv r/conv2_block2_1_conv e", [3, 2, 1, 0]),
        ("e/stem/kernel e/blocks_00/expand e/blocks_15/project e/head", [3, 2, 1, 0]),
        ("m/conv2d/kernel m/conv2d_1/kernel m/block_3/conv2d_7/kernel h", [2, 2, 1, 0]),
    ],
)  # fmt: skip
def test_blocks_are_told_by_their_names(names, above):
    assert optimizers.layers_above(names.split()) == above


def test_blocks_nearer_the_images_learn_more_slowly():
    config = Config({"model.optimizer.method": "sgd", "model.layer_decay": 0.5})
    config["model.learning_rate_factor"] = 0.1
    config["model.learning_rate_factor.filter_regex"] = "^net/"
    names = ["net/patches", "net/block_0/w", "net/block_1/w", "head"]
    with tf.Graph().as_default(), v1.Session() as session:
        variables = [v1.get_variable(name, initializer=0.0) for name in names]
        pairs = [(tf.constant(-1.0), v) for v in variables]
        step = v1.train.create_global_step()
        update = optimizers.create(config, tf.constant(8.0)).apply_gradients(pairs, step)
        session.run(v1.global_variables_initializer())
        session.run(update)
        np.testing.assert_allclose(session.run(variables), [0.1, 0.2, 0.4, 8.0], rtol=1e-6)
        assert session.run(step) == 1


@pytest.mark.parametrize("factor", (1.0, 0.5))
def test_the_head_learns_first_then_the_network_warms_up(factor):
    config = Config({"model.optimizer.method": "adamw", "model.learning_rate_factor": factor})
    config["model.learning_rate_factor.filter_regex"] = "^net/"
    config["model.learning_rate_factor.from_step"] = 2
    config["model.lr_schedule.warmup_steps"] = 2
    config["model.weight_decay"] = 0.1
    with tf.Graph().as_default(), v1.Session() as session:
        variables = [v1.get_variable(name, initializer=1.0) for name in ("net/w", "head")]
        pairs = [(tf.constant(1.0), v) for v in variables]
        step = v1.train.create_global_step()
        optimizer = optimizers.create(config, tf.constant(RATE), variables, step)
        update = optimizer.apply_gradients(pairs, step)
        session.run(v1.global_variables_initializer())
        seen = [session.run(variables)]
        for _ in range(5):
            session.run(update)
            seen.append(session.run(variables))
    network, head = np.diff(seen, axis=0).T
    # Adam's updates of a constant gradient are 1; weights near 1 decay by 0.1 of themselves.
    np.testing.assert_array_equal(network[:2], 0.0)
    np.testing.assert_allclose(head, -RATE * 1.1, rtol=0.1 * 5 * RATE * 1.1 + 1e-4)
    np.testing.assert_allclose(
        network[2:], -RATE * 1.1 * factor * np.array([0.5, 1, 1]), rtol=0.1 * 5 * RATE * 1.1 + 1e-4
    )


def test_a_decay_by_layers_needs_layers():
    config = Config({"model.layer_decay": 0.5})
    with tf.Graph().as_default(), pytest.raises(UserError, match="model.layer_decay: no trained"):
        head = v1.get_variable("head", [])
        step = v1.train.create_global_step()
        optimizers.create(config, tf.constant(RATE)).apply_gradients([(head, head)], step)
