"""Time of backbones over PyTorch's, and of the bridge over the bare Keras model.

    python -m benchmarks.backbones [--quick] [--networks=resnet50,vit_s] [--modes=forward,train]
        [--precisions=float32,bfloat16] [--python=PYTHON] [--size=224] [--batch=16] [--threads=2]

ResNet-50 of Keras and DINOv2's ViT-S/14 of KerasHub, with random weights: through this project in
a graph, as the bare Keras model in a `tf.function`, and in PyTorch, eager and compiled, by turns in
one run. A training step is forward, backward, and SGD with momentum. `--python` is an interpreter
with PyTorch, by default that of peer.py if it is installed; none: without.

Each network, mode and precision is a run of its own: where the machine is quiet for minutes only,
give one at a time. The first run of compiled PyTorch takes a minute more, which it keeps.
"""

import contextlib
import functools
import importlib.util
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import figures, peer, timing

ROOT = pathlib.Path(__file__).parent.parent
*RATIOS, BRIDGE, LOAD = figures.REACH["backbones"]
NETWORKS = {"resnet50": "ResNet-50", "vit_s": "ViT-S/14"}
WORK = {"forward": "forward", "train": "training"}


def address(name):
    """Where a network is; that of ViT-S is a folder with random weights, made the first time."""
    if name == "resnet50":
        return "keras:keras.applications:ResNet50"
    sys.path.insert(0, str(ROOT / "tests" / "models"))
    import published

    folder = pathlib.Path(tempfile.gettempdir()) / "prototrain-dinov2-small"
    if not (folder / "model.safetensors").exists():
        published.folder(folder, published.dinov2_small())
    return f"kerashub:{folder}"


# ---------------------------------------------------------------------------- workers


def ours(name, mode, precision, size, batch, threads):
    from trainer import quiet

    quiet.import_tensorflow()

    import tensorflow as tf

    from models import backbones
    from trainer import optimizers, towers
    from trainer.config import Config

    v1 = tf.compat.v1
    config = Config({"trainer.intra_op_threads": threads, "trainer.inter_op_threads": 1})
    config["trainer.mixed_precision"] = "bfloat16" if precision == "bfloat16" else ""
    backbone = backbones.load(address(name))
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3)).astype(np.float32)
    with tf.Graph().as_default():
        images = v1.get_variable("images", initializer=pixels, trainable=False).read_value()
        features = backbone.apply(images, mode == "train")
        step = features.op
        if mode == "train":
            loss = loss_of(features)
            trained = v1.trainable_variables()
            pairs = list(zip(v1.gradients(loss, trained), trained, strict=True))
            pairs = [(g, v) for g, v in pairs if g is not None]
            with tf.control_dependencies(v1.get_collection(v1.GraphKeys.UPDATE_OPS)):
                step = optimizers.create(config, tf.constant(1e-4)).apply_gradients(pairs)
        with v1.Session(config=towers.session_config(config, towers.devices())) as session:
            session.run(v1.global_variables_initializer())
            timing.answer(session.make_callable(step))


def loss_of(features):
    import tensorflow as tf

    target = tf.eye(*features.shape)
    return tf.reduce_sum(tf.square(tf.nn.l2_normalize(features, 1) - target))


def bare(name, mode, precision, size, batch, threads):
    """The same Keras model, as a user of Keras runs it."""
    from trainer import quiet

    quiet.import_tensorflow()

    import keras
    import tensorflow as tf

    from models.backbones import KERAS, KERASHUB, kerashub
    from models.backbones import keras_model as of_keras

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if precision == "bfloat16":
        tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": True})
    at = address(name)
    network = (
        of_keras.load(at.removeprefix(KERAS))
        if at.startswith(KERAS)
        else kerashub.load(at.removeprefix(KERASHUB))
    )
    model = network.make((size, size))
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3)).astype(np.float32)
    images = tf.constant(pixels)
    optimizer = keras.optimizers.SGD(1e-4, momentum=0.9)

    def features(training):
        found = model(network.pixels(images), training=training)
        return found[:, 0] if len(found.shape) == 3 else tf.reduce_mean(found, [1, 2])

    @tf.function
    def forward():
        return features(False)

    @tf.function
    def train():
        with tf.GradientTape() as tape:
            loss = loss_of(features(True))
        trained = model.trainable_variables
        pairs = zip(tape.gradient(loss, trained), trained, strict=True)
        optimizer.apply_gradients([(g, v) for g, v in pairs if g is not None])

    timing.answer(train if mode == "train" else forward)


def load(size):
    """Prints the seconds from files to a session with the weights of ViT-S."""
    from trainer import quiet

    quiet.import_tensorflow()

    import keras_hub  # noqa: F401 (imports do not count)
    import tensorflow as tf

    from models import backbones

    v1 = tf.compat.v1
    at = address("vit_s")
    start = time.perf_counter()
    backbone = backbones.load(at)
    with tf.Graph().as_default(), v1.Session() as session:
        backbone.apply(v1.placeholder(tf.float32, [None, size, size, 3]))
        session.run(v1.global_variables_initializer())
        print(time.perf_counter() - start)


# ---------------------------------------------------------------------------- the program


def measure(
    quick=False, networks="resnet50,vit_s", modes="forward,train", precisions="float32,bfloat16",
    python="", size=224, batch=16, threads=2, rounds=5, steps=1, noload=False,
):  # fmt: skip
    engines = ("eager", "compile")
    if quick:
        modes, precisions, engines, batch, rounds = "forward", "float32", ("eager",), 4, 3
    names = networks.split(",")
    lacking = "" if importlib.util.find_spec("keras_hub") else "pip install 'prototrain[kerashub]'"
    if "vit_s" in names and not lacking:
        address("vit_s")  # made before anything is timed
    torch = "" if python == "none" else python or peer.installed(("torch",))
    this = [sys.executable, "-m", "benchmarks.backbones", "--worker"]
    theirs = [torch, "-m", "benchmarks.peer_backbones"]
    over_bare = {}
    for name in names:
        for mode in modes.split(","):
            for precision in precisions.split(","):
                case = name, mode, precision
                if name == "vit_s" and lacking:
                    yield figures.Figure(row_of(*case), None, note=lacking)
                    continue
                shape = [str(n) for n in (size, batch, threads)]
                commands = {side: [*this, side, *case, *shape] for side in ("ours", "bare")}
                if torch:
                    commands |= {e: [*theirs, *case, e, *shape] for e in engines}
                times = by_turns(commands, rounds, steps)
                over_bare[row_of(*case)] = times["ours"] / times["bare"]
                yield compared(row_of(*case), times, batch)
    if over_bare:
        slowest = max(over_bare, key=lambda row: np.median(over_bare[row]))
        note = f"the slowest: {slowest.partition(',')[0]}"
        yield figures.figure(BRIDGE, over_bare[slowest], note=note)
    if "vit_s" in names and not noload and not lacking:
        command = [*this, "load", str(size)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        yield figures.figure(LOAD, [float(done.stdout)], "s", "after imports")
    elif lacking:
        yield figures.Figure(LOAD, None, note=lacking)
    for row in (r for r in RATIOS if quick and r not in over_bare and not lacking):
        yield figures.Figure(row, None, note="not with --quick")


def row_of(name, mode, precision):
    sixteen = " in bfloat16" * (precision == "bfloat16")
    return f"{NETWORKS[name]} {WORK[mode]}{sixteen}, time over PyTorch's best"


def by_turns(commands, rounds, steps):
    """{side: seconds per step [rounds]} of those that run; the first turn compiles."""
    with contextlib.ExitStack() as stack:
        workers = {side: stack.enter_context(timing.Worker(c)) for side, c in commands.items()}
        for side, worker in list(workers.items()):
            try:
                worker(1)
            except RuntimeError:
                if side != "compile":
                    raise
                del workers[side]  # torch.compile needs a compiler for C++
        calls = [functools.partial(worker, steps) for worker in workers.values()]
        return dict(zip(workers, timing.alternate(calls, rounds), strict=True))


def compared(row, times, batch):
    """The `Figure` of ours over the best of PyTorch, turn by turn."""
    note = ", ".join(f"{side} {np.median(t) * 1000 / batch:.1f}" for side, t in times.items())
    note = f"ms per image: {note}"
    theirs = [times[engine] for engine in ("eager", "compile") if engine in times]
    if not theirs:
        return figures.Figure(row, None, note=f"{peer.MISSING}; {note}")
    return figures.figure(row, times["ours"] / np.min(theirs, 0), note=note)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        side, *rest = sys.argv[2:]
        rest = [int(n) if n.isdigit() else n for n in rest]
        {"ours": ours, "bare": bare, "load": load}[side](*rest)
    else:
        figures.program(measure)
