"""Figures of a GPU machine: training steps, mining, towers, input, memory, each with its limit.

    python -m benchmarks.gpu [--quick] [--only=NAME,...] [--output=FILE] [--record=VERSION]
    python -m benchmarks.gpu --devices=cpu --quick      # tiny, with CPU devices in the GPUs' place

It needs no network. Each part runs in a process of its own; a part that fails says why in its row.
The limit of a training step is the rate of one bare convolution (ResNet-50) or one bare product
(vision transformer) of the same type in the same run. PyTorch is compared where it is installed:
the better of eager, eager in channels_last and compile. Both sides may use TF32 in float32.
"""

import argparse
import contextlib
import dataclasses
import os
import re
import sys
import tempfile

import numpy as np

from benchmarks import figures, peer, run, timing


@dataclasses.dataclass(frozen=True)
class Scale:
    """Devices and sizes."""

    devices: tuple[str, ...]
    tiny: bool = False  # CPU devices in the GPUs' place
    rounds: int = 7
    steps: int = 10  # per round
    size: int = 224
    batch: int = 128  # images per device
    mined: tuple[int, ...] = (8192, 16384, 32768, 65536)
    dimensions: int = 512
    side: int = 8192  # of the bare product's matrices
    photos: int = 2048

    @property
    def narrow(self):
        """The 16-bit type that TensorFlow's graph optimizer has on the devices."""
        return "bfloat16" if self.tiny else "float16"


def scale_of(kind, quick):
    """The `Scale` for all visible GPUs, or for two virtual CPU devices."""
    if kind == "cpu":
        devices = ("/device:CPU:0", "/device:CPU:1")
        return Scale(devices, True, 1, 1, 32, 8, (64, 128), 16, 128, 32)
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        raise RuntimeError("no GPU is visible; --devices=cpu tries the program without one")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    devices = tuple(f"/device:GPU:{i}" for i in range(len(gpus)))
    return Scale(devices, rounds=3, steps=5) if quick else Scale(devices)


def resnet50(scale):
    yield from _training("ResNet-50", "resnet50", "convolutions", scale)


def vit(scale):
    yield from _training("ViT-S/16", "vit", "products", scale)


def _training(title, name, limit, scale):
    """Training steps with either precision, with and without XLA, beside the limit and PyTorch."""
    for precision in ("float32", scale.narrow):
        with contextlib.ExitStack() as stack:
            enter = stack.enter_context
            peers, commands = {}, _peer_commands(name, precision, scale)
            for kind, command in commands.items():
                worker = enter(timing.Worker(command))
                with contextlib.suppress(RuntimeError):
                    worker(1)  # compiles
                    peers[kind] = lambda w=worker: w(scale.steps)
            limit_step, limit_flops = enter(_bare(limit, precision, scale))
            ours, failed = {}, {}
            for kind, xla in ((precision, False), (f"{precision}, XLA", True)):
                try:
                    ours[kind], flops = enter(_step(name, precision, xla, scale))
                    ours[kind]()
                except Exception as error:
                    ours.pop(kind, None)
                    failed[kind] = f"failed: {str(error).splitlines()[0][:200]}"
            functions = [limit_step, *ours.values()]
            turns = [lambda f=f: timing.seconds(f, scale.steps) for f in functions]
            bare, *seconds = timing.alternate([*turns, *peers.values()], scale.rounds)
        theirs = dict(zip(peers, seconds[len(ours) :], strict=True))
        best = min(theirs, key=lambda kind: np.median(theirs[kind]), default=None)
        for kind, times in zip(ours, seconds, strict=False):
            note = f"{scale.batch / np.median(times):.0f} images/s"
            share = (flops / times) / (limit_flops / bare)
            row = f"{title} train step, {kind}"
            yield figures.figure(f"{row}, share of bare {limit}", share, note=note)
            if best:
                note = f"best: {best}, {scale.batch / np.median(theirs[best]):.0f} images/s"
                yield figures.figure(f"{row}, over PyTorch", theirs[best] / times, note=note)
            else:
                reason = "PyTorch failed on this device" if commands else peer.MISSING
                yield figures.Figure(f"{row}, over PyTorch", None, note=reason)
        for kind, reason in failed.items():
            yield figures.Figure(f"{title} train step, {kind}", None, note=reason)


def _peer_commands(name, precision, scale):
    other = peer.installed(("torch",))
    if not other:
        return {}
    given = [str(scale.size), str(scale.batch), "0", name]
    given += ["tiny"] if scale.tiny else ["cuda"]
    given += ["bf16"] * (precision == scale.narrow)
    kinds = {"eager": [], "eager, channels_last": ["channels_last"], "compile": ["compile"]}
    if scale.tiny:
        del kinds["compile"]  # half a minute
    script = peer.script("peer_train_step.py")
    return {kind: [other, script, *given, *options] for kind, options in kinds.items()}


def _config(precision, xla=False):
    from trainer.config import Config

    given = {"trainer.mixed_precision": precision.replace("float32", ""), "trainer.xla": xla}
    return Config(given)


def _step(name, precision, xla, scale, devices=None, inputs=None):
    """A context with (step, operations) of a network on devices, `scale.batch` images on each."""
    from benchmarks import networks, steps

    def network(pixels, train_phase):
        depth = {"resnet50": {"blocks": (1, 1, 1, 1)}, "vit": {"depth": 1}}[name]
        return getattr(networks, name)(pixels, train_phase, **depth if scale.tiny else {})

    devices = list(devices or scale.devices[:1])
    batch = scale.batch * len(devices)
    return steps.training(network, _config(precision, xla), scale.size, batch, inputs, devices)


@contextlib.contextmanager
def _bare(what, precision, scale):
    """Yields (a function that runs one convolution or product, its operations)."""
    import tensorflow as tf

    from trainer import towers

    v1 = tf.compat.v1
    dtype = tf.dtypes.as_dtype(precision)
    with tf.Graph().as_default(), tf.device(scale.devices[0]):

        def matrix(name, shape):
            values = v1.random_normal_initializer()
            return tf.cast(v1.get_variable(name, shape, initializer=values).read_value(), dtype)

        if what == "products":
            rows, columns = (matrix(name, [scale.side] * 2) for name in ("rows", "columns"))
            result, flops = tf.matmul(rows, columns), 2 * scale.side**3
        else:
            # A stage of ResNet-50: 3 x 3, of 256 channels, at 14 x 14.
            shape = [4, 8, 8, 16] if scale.tiny else [4 * scale.batch, 14, 14, 256]
            kernel = matrix("kernel", [3, 3, shape[3], shape[3]])
            result = tf.nn.conv2d(matrix("images", shape), kernel, 1, "SAME")
            flops = 2 * int(np.prod(shape)) * 9 * shape[3]
        # One element is fetched: the work is done, and nothing is copied.
        fetch = tf.reshape(result, [-1])[0]
        config = towers.session_config(_config("float32"), list(scale.devices[:1]))
        with v1.Session(config=config) as session:
            session.run(v1.global_variables_initializer())
            yield session.make_callable(fetch), flops


def batch_hard(scale):
    """Batch-hard forward + backward over the bare product of the same embeddings."""
    from benchmarks import steps
    from trainer import towers

    kinds = {"float32": {}, "mining_dtype bfloat16": {"mining_dtype": "bfloat16"}}
    config = towers.session_config(_config("float32"), list(scale.devices[:1]))
    for batch in scale.mined:
        size = f"B={batch} D={scale.dimensions}"
        try:
            given = batch, scale.dimensions, kinds.values(), config, scale.devices[0]
            with steps.mining(*given) as functions:
                turns = [lambda f=f: timing.seconds(f, scale.steps) for f in functions]
                product, *ours = timing.alternate(turns, scale.rounds)
        except Exception as error:  # such as too little memory for the product
            reason = f"failed: {str(error).splitlines()[0][:200]}"
            yield figures.Figure(f"batch-hard over one product, {size}", None, note=reason)
            continue
        for kind, seconds in zip(kinds, ours, strict=True):
            note = f"product {1e3 * np.median(product):.2f} ms"
            row = f"batch-hard over one product, {kind}, {size}"
            yield figures.figure(row, seconds / product, note=note)


def towers(scale):
    """Images per second on N devices over N times one device."""
    if len(scale.devices) < 2:
        yield figures.Figure("scaling of towers", None, note="one GPU is visible; it takes two")
        return
    counts = sorted({2, len(scale.devices)})
    with contextlib.ExitStack() as stack:
        functions = [
            stack.enter_context(_step("resnet50", scale.narrow, False, scale, scale.devices[:n]))[0]
            for n in (1, *counts)
        ]
        turns = [lambda f=f: timing.seconds(f, scale.steps) for f in functions]
        one, *many = timing.alternate(turns, scale.rounds)
    for count, seconds in zip(counts, many, strict=True):
        row = f"images/s of {count} towers over {count} times one tower"
        yield figures.figure(row, one / seconds)


def input_saturation(scale):
    """Whether reading and decoding keep one device busy with ResNet-50 in 16 bits."""
    import tensorflow as tf

    from benchmarks import input_pipeline
    from metriclearn import augment
    from metriclearn.datasets import pipeline

    v1 = tf.compat.v1
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        table = input_pipeline.made(folder, scale.photos, 256)
        sample = input_pipeline.in_order(len(table), scale.batch)

        def batches():
            flip = {"crop": augment.random_window(), "augment": augment.random_flip}
            made = pipeline.train_batches(table, sample, image_size=scale.size, **flip)
            return v1.data.make_one_shot_iterator(made).get_next()

        def fed():
            batch = batches()
            # Shapes are known, so that the graph is the same as with constants.
            image = tf.ensure_shape(batch["image"], [scale.batch, scale.size, scale.size, 3])
            return {"image": image, "label": tf.ensure_shape(batch["label"], [scale.batch])}

        resident = stack.enter_context(_step("resnet50", scale.narrow, False, scale))[0]
        trained = stack.enter_context(_step("resnet50", scale.narrow, False, scale, inputs=fed))[0]
        stack.enter_context(tf.Graph().as_default())
        session = stack.enter_context(v1.Session())
        read = session.make_callable(batches()["image"].op)
        turns = [lambda f=f: timing.seconds(f, scale.steps) for f in (read, resident, trained)]
        alone, step, together = timing.alternate(turns, scale.rounds)
    note = f"{scale.batch / np.median(alone):.0f} images/s on {os.cpu_count()} cores"
    yield figures.figure("input pipeline over what one device consumes", step / alone, note=note)
    yield figures.figure("training from files over training from memory", step / together)


def check_towers(scale):
    """The worst relative difference between N towers and one."""
    from models import simple
    from trainer import check_towers as checked

    config, before = simple.config, simple.config.to_dict()
    try:
        config["trainer.num_towers"] = max(2, len(scale.devices))
        if scale.tiny:
            config["model.batch_size"] = 16
        lines = checked.check_towers(simple, config)
    finally:
        config.restore(before)
    worst = next(line for line in lines if line.startswith("worst"))
    value = float(re.search(r"difference ([\d.e+-]+)", worst)[1])
    yield figures.Figure("--check_towers, worst relative difference", value, note=lines[-1])


def memory(scale):
    """Peak memory of one device: training steps, and mining beyond the embeddings."""
    from benchmarks import steps
    from trainer import towers

    for precision in ("float32", scale.narrow):
        with _step("resnet50", precision, False, scale) as (step, _):
            row = f"peak memory, ResNet-50 train step, {precision}, {scale.batch} images"
            yield figures.Figure(row, _peak(step, scale), unit="MiB")
    config = towers.session_config(_config("float32"), list(scale.devices[:1]))
    batch = scale.mined[-1]
    given = batch, scale.dimensions, [{}], config, scale.devices[0]
    with steps.mining(*given) as (_, mine):
        row = f"peak memory, batch-hard forward + backward, B={batch} D={scale.dimensions}"
        yield figures.Figure(row, _peak(mine, scale), unit="MiB")


def _peak(step, scale):
    """MiB of the device at most during a step; of the process beyond what it had, on a CPU."""
    import tensorflow as tf

    step()
    if scale.tiny:
        return timing.grown(step)
    name = scale.devices[0].removeprefix("/device:")
    tf.config.experimental.reset_memory_stats(name)
    step()
    return tf.config.experimental.get_memory_info(name)["peak"] / 2**20


PARTS = {
    part.__name__: part
    for part in (resnet50, vit, batch_hard, towers, input_saturation, check_towers, memory)
}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--devices", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--one_process", action="store_true", help="run all parts in this process")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--lines", action="store_true", help=argparse.SUPPRESS)
    run.add_flags(parser)
    options = parser.parse_args(arguments)
    from trainer import quiet

    if options.part or options.one_process:
        quiet.import_tensorflow()
    if options.part:
        figures.print_lines(PARTS[options.part](scale_of(options.devices, options.quick)))
        return 0
    start = run.in_process_of_its_own(
        f"--devices={options.devices}",
        *["--quick"] * options.quick,
        module="benchmarks.gpu --part={}",
    )
    if options.one_process:
        start = _here(scale_of(options.devices, options.quick))
    return run.all_of({name: {} for name in PARTS}, start, options, parser)


def _here(scale):
    def start(name):
        try:
            yield from PARTS[name](scale)
        except Exception as error:
            raise RuntimeError(f"failed: {str(error).splitlines()[0]}") from error

    return start


if __name__ == "__main__":
    sys.exit(main())
