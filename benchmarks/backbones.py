"""Time of backbones over PyTorch's, and of the bridge over the bare Keras model.

    python -m benchmarks.backbones [--networks=resnet50,vit_s] [--modes=forward,train]
        [--precisions=float32,bfloat16] [--python=PYTHON] [--size=224] [--batch=16] [--threads=2]

ResNet-50 of Keras and DINOv2's ViT-S/14 of KerasHub, with random weights: through this project in
a graph, as the bare Keras model in a `tf.function`, and in PyTorch, eager and compiled, by turns in
one run. A training step is forward, backward, and SGD with momentum. `--python` is an interpreter
with PyTorch; by default the peer's environment is made (see peer.py). What is missing is said, and
the rest is measured.

ratio: ours over the best of PyTorch; bridge: ours over the bare Keras model. Both are medians over
the rounds. `load` is the time from a folder of Hugging Face's files to a session with weights.
"""

import argparse
import contextlib
import functools
import importlib.util
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import peer, timing

ROOT = pathlib.Path(__file__).parent.parent
GOALS = {
    ("resnet50", "forward", "float32"): 0.8,
    ("resnet50", "train", "float32"): 1.0,
    ("vit_s", "forward", "float32"): 1.1,
    ("vit_s", "train", "float32"): 1.1,
}
GOAL_16, GOAL_BRIDGE, GOAL_LOAD = 1.2, 1.02, 2.0


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

    import numpy as np
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
    import numpy as np
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


def torch_python(given):
    """An interpreter with PyTorch, or None with a word on what is missing."""
    try:
        python = given or peer.python()
        subprocess.run([python, "-c", "import torch"], check=True, capture_output=True)
        return python
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"the peer PyTorch is missing ({error}): without its rows; give --python", flush=True)
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", default="resnet50,vit_s")
    parser.add_argument("--modes", default="forward,train")
    parser.add_argument("--precisions", default="float32,bfloat16")
    parser.add_argument("--python", default="", help="an interpreter with PyTorch; none: without")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--noload", action="store_true", help="do not time loading")
    options = parser.parse_args()
    networks = options.networks.split(",")
    if "vit_s" in networks and not importlib.util.find_spec("keras_hub"):
        print("KerasHub is missing: without ViT-S; pip install 'prototrain[kerashub]'", flush=True)
        networks.remove("vit_s")
    if "vit_s" in networks:
        address("vit_s")  # made before anything is timed
    torch = None if options.python == "none" else torch_python(options.python)
    this = [sys.executable, "-m", "benchmarks.backbones", "--worker"]
    theirs = [torch, "-m", "benchmarks.peer_backbones"]
    print("ms per image          ours    bare   eager compile   ratio (goal)   bridge (goal)")
    for name in networks:
        for mode in options.modes.split(","):
            for precision in options.precisions.split(","):
                case = name, mode, precision
                shape = [str(n) for n in (options.size, options.batch, options.threads)]
                commands = {side: [*this, side, *case, *shape] for side in ("ours", "bare")}
                if torch:
                    for engine in ("eager", "compile"):
                        commands[engine] = [*theirs, *case, engine, *shape]
                with contextlib.ExitStack() as ended:
                    workers = [ended.enter_context(timing.Worker(c)) for c in commands.values()]
                    calls = [functools.partial(worker, options.steps) for worker in workers]
                    times = timing.alternate(calls, options.rounds) * 1000 / options.batch
                report(case, dict(zip(commands, times, strict=True)))
    if "vit_s" in networks and not options.noload:
        command = [*this, "load", str(options.size)]
        seconds = float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        print(f"load vit_s: {seconds:.2f} s (goal {GOAL_LOAD})")


def report(case, found):
    medians = {side: statistics.median(times) for side, times in found.items()}
    cells = [f"{medians[s]:7.2f}" if s in medians else "      -" for s in
             ("ours", "bare", "eager", "compile")]  # fmt: skip

    def over(*others):
        best = [min(times) for times in zip(*(found[o] for o in others), strict=True)]
        return statistics.median(a / b for a, b in zip(found["ours"], best, strict=True))

    goal = GOALS.get(case, GOAL_16)
    ratio = f"{over('eager', 'compile'):7.2f} ({goal})" if "eager" in found else "      -"
    row = f"{' '.join(case):20} {' '.join(cells)} {ratio:14} {over('bare'):8.3f} ({GOAL_BRIDGE})"
    print(row, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        side, *rest = sys.argv[2:]
        rest = [int(n) if n.isdigit() else n for n in rest]
        {"ours": ours, "bare": bare, "load": load}[side](*rest)
    else:
        main()
