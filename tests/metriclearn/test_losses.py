import functools
import inspect

import numpy as np
import pytest
import reference
import reference_losses
import tensorflow as tf

import metriclearn
from metriclearn.losses import LOSSES, PROXY_LOSSES

pytestmark = pytest.mark.numeric
# Those that test_oracle.py does not compare on all counts have a loop of their own.
LOOPS = sorted(name for name in {*LOSSES, *PROXY_LOSSES} if hasattr(reference_losses, name))


def takes(name, option):
    return option in inspect.signature(LOSSES[name]).parameters


# Losses in which a pair is a term without a third example.
OF_PAIRS = {"contrastive", "intra_pair_variance", "snr_contrastive", "threshold_consistent_margin"}


def batch(seed=0, size=9, classes=3, dimension=4):
    rng = np.random.default_rng(seed)
    return rng.permutation(np.arange(size) % classes), rng.normal(size=(size, dimension))


def value_and_gradient(function, *arrays):
    tensors = [tf.constant(a) for a in arrays]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        loss = function(*tensors)
    gradients = tape.gradient(loss, tensors)
    assert None not in gradients, "the loss must stay connected to its inputs"
    return loss.numpy(), [tf.convert_to_tensor(g).numpy() for g in gradients]


def same_options(loop):
    """The loop's own defaults, which are milder than the library's: differences stay visible."""
    parameters = inspect.signature(loop).parameters.values()
    return {p.name: p.default for p in parameters if p.default not in (p.empty, None)}


@pytest.mark.parametrize("name", [name for name in LOOPS if name in LOSSES])
def test_pair_losses_match_the_loops(name):
    loop = getattr(reference_losses, name)
    options = same_options(loop)
    for seed in range(2):
        labels, x = batch(seed)
        loss = functools.partial(LOSSES[name], labels, **options)
        value, (gradient,) = value_and_gradient(loss, x)
        np.testing.assert_allclose(value, loop(labels, x), rtol=1e-9)
        # Circle loss holds its weights still in the gradient, SimSiam a view; so must the loop.
        still = {"fixed": x} if name in ("circle", "simsiam") else {}
        wanted = reference.gradient(lambda v, s=still, y=labels: loop(y, v, **s), x)
        np.testing.assert_allclose(gradient, wanted, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in LOOPS if name in PROXY_LOSSES])
def test_proxy_losses_match_the_loops(name):
    loop = getattr(reference_losses, name)
    labels, x = batch(3, classes=4)
    proxies = np.random.default_rng(4).normal(size=(5, 4))  # the last class is absent
    x[0] = -proxies[labels[0]]  # beyond ArcFace's turning point, where sin is 0
    x[1] += 0.5 * x[0]
    loss = functools.partial(PROXY_LOSSES[name], labels, **same_options(loop))
    value, (at_x, at_proxies) = value_and_gradient(loss, x, proxies)
    np.testing.assert_allclose(value, loop(labels, x, proxies), rtol=1e-6)
    wanted = reference.gradient(lambda v: loop(labels, v, proxies), x)
    np.testing.assert_allclose(at_x[1:], wanted[1:], atol=1e-6)
    assert np.isfinite(at_x).all()
    wanted = reference.gradient(lambda v: loop(labels, x, v), proxies)
    rest = [c for c in range(5) if c != labels[0]]
    np.testing.assert_allclose(at_proxies[rest], wanted[rest], atol=1e-6)


def test_margin_loss_matches_the_loop():
    labels, x = batch(5)
    miner = functools.partial(metriclearn.mine_batch_hard, distance="euclidean")
    boundary = np.linspace(0.8, 1.6, len(labels))

    def loop(x, boundary, reduction="nonzero_mean"):
        d = reference.distances("euclidean", x, x)
        triplets = reference.batch_hard(labels, d)
        near = [max(0, 0.2 + d[a, p] - boundary[a]) for a, p, _ in triplets]
        far = [max(0, 0.2 + boundary[a] - d[a, n]) for a, _, n in triplets]
        return reference.reduce_terms(near + far, reduction)

    loss = lambda x, b: metriclearn.margin_loss(labels, x, beta=b, miner=miner)  # noqa: E731
    value, (at_x, at_boundary) = value_and_gradient(loss, x, boundary)
    np.testing.assert_allclose(value, loop(x, boundary), rtol=1e-9)
    np.testing.assert_allclose(at_x, reference.gradient(lambda v: loop(v, boundary), x), atol=1e-7)
    wanted = reference.gradient(lambda v: loop(x, v), boundary)
    np.testing.assert_allclose(at_boundary, wanted, atol=1e-7)
    constant = metriclearn.margin_loss(labels, x, beta=1.2, miner=miner, reduction="sum")
    np.testing.assert_allclose(constant, loop(x, np.full(9, 1.2), "sum"), rtol=1e-9)


@pytest.mark.parametrize(
    "labels",
    [[0, 0, 0, 0], [0, 1, 2, 3], [7], []],
    ids=["one class", "all distinct", "one", "empty"],
)
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_no_valid_term_is_exactly_zero(name, labels):
    x = np.ones((len(labels), 4), np.float32)
    x[:2] = 0  # zero vectors and duplicates on the way
    if name in OF_PAIRS:  # both kinds of pairs stand alone, so satisfy them
        x[:] = 10 * np.eye(4) if labels == [0, 1, 2, 3] else 1
    if name == "instance" and labels == [0, 1, 2, 3]:
        return  # each example is its own class, which is to be told from the others
    loss = functools.partial(LOSSES[name], np.array(labels, np.int64))
    value, (gradient,) = value_and_gradient(loss, x)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(x))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_zero_vectors_and_duplicates_have_finite_gradients(name):
    x = np.zeros((6, 3), np.float32)
    x[3:] = 1
    loss = functools.partial(LOSSES[name], np.array([0, 0, 1, 0, 1, 1]))
    value, (gradient,) = value_and_gradient(loss, x)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


# Products of longer or shorter rows are beyond float32.
SCALES = dict.fromkeys(("nca", "large_margin_softmax"), (1e-15, 1e-10, 1e15))
SCALES["n_pairs"] = (1e-30, 1e-10, 1e15)  # its value is a product; see losses/test_pairwise.py
SCALES["vicreg"] = (1e-30, 1e-10, 1e6)  # covariances are squared


@pytest.mark.parametrize("name", sorted(LOSSES | PROXY_LOSSES))
def test_losses_are_finite_and_right_over_the_range(name):
    """In float32 as in float64, where nothing overflows; margins are in units of the distance."""
    labels, x = batch(11, size=12, classes=4)
    others = () if name in LOSSES else (batch(12, size=4)[1],)
    loss = (LOSSES | PROXY_LOSSES)[name]
    for scale in SCALES.get(name, (1e-30, 1e-10, 1e10, 1e20, 1e30)):
        options = {"miner": "batch_hard"} if name == "margin" else {}

        def run(dtype, scale=scale, options=options):
            arrays = [(a * scale).astype(np.float32).astype(dtype) for a in (x, *others)]
            return value_and_gradient(functools.partial(loss, labels, **options), *arrays)

        (got, gradients), (wanted, exact) = run(np.float32), run(np.float64)
        # The steepest loss, ArcFace, multiplies the rounding of its cosines by its scale of 64.
        tolerance = 64 * 50 * np.finfo(np.float32).eps
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)
        for gradient, slope in zip(gradients, exact, strict=True):
            assert np.isfinite(gradient).all()
            np.testing.assert_allclose(
                gradient, slope, rtol=0, atol=10 * tolerance * np.abs(slope).max()
            )


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_nan_reaches_the_loss(name):
    labels, x = batch(6)
    x[labels == 0] *= np.nan
    assert np.isnan(LOSSES[name](labels, x))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_any_label_dtype_any_mode(name):
    labels, x = batch(7)
    expected = LOSSES[name](labels, x).numpy()
    strings = np.array(["a", "b", "c"])[labels]
    large = labels.astype(np.int64) + 2**53
    for kind in strings, large:
        np.testing.assert_allclose(LOSSES[name](kind, x), expected, rtol=1e-12)
    np.testing.assert_allclose(tf.function(LOSSES[name])(labels, x), expected, rtol=1e-12)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        shapeless = tf.compat.v1.placeholder(tf.float64, [None, None])
        loss = LOSSES[name](tf.constant(strings), shapeless)
        gradient = tf.convert_to_tensor(tf.gradients(loss, shapeless)[0])
        value, gradient = session.run([loss, gradient], {shapeless: x})
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert np.abs(gradient).sum() > 0


@pytest.mark.parametrize("name", [n for n in LOSSES if takes(n, "references")])
def test_references_that_are_the_batch_change_nothing(name):
    labels, x = batch(8)
    itself = metriclearn.References(labels, x, np.arange(len(x)))
    options = {"miner": "batch_hard"} if name == "margin" else {}  # its own one draws at random
    expected = LOSSES[name](labels, x, **options)
    got = LOSSES[name](labels, x, references=itself, **options)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("name", [n for n in LOSSES if takes(n, "reduction")])
def test_reductions_agree_with_each_other(name):
    labels, x = batch(9)
    terms = LOSSES[name](labels, x, reduction="none").numpy()
    np.testing.assert_allclose(LOSSES[name](labels, x, reduction="sum"), terms.sum(), rtol=1e-9)
    if name not in OF_PAIRS:  # which average their two kinds apart
        mean = LOSSES[name](labels, x, reduction="mean")
        np.testing.assert_allclose(mean, terms.mean(), rtol=1e-9)


def test_check_numerics_finds_the_nan_and_nothing_else():
    labels, x = batch(10)
    x[0, 0] = np.nan
    tf.debugging.enable_check_numerics()
    try:
        with pytest.raises(tf.errors.InvalidArgumentError, match="NaN"):
            metriclearn.triplet_loss(labels, x)
        x[0, 0] = 0  # masked entries are finite, so that nothing else alarms it
        for name in sorted(LOSSES):
            LOSSES[name](labels, x)
    finally:
        tf.debugging.disable_check_numerics()


def test_proxy_losses_want_integer_labels():
    with pytest.raises(ValueError, match="labels must be integers, the rows of proxies"):
        metriclearn.arcface_loss(["a"], np.ones((1, 2)), np.ones((3, 2)))
