"""Imports third-party SavedModels into the current graph: of TF2, and of TF1 (TensorFlow Hub).

A TF2 SavedModel is loaded once per graph and called once per tower. A TF1 SavedModel is a graph:
each tower imports a copy of the operations, with variables that are made here once.
"""

import hashlib
import os
import re
from typing import Any, NamedTuple

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework import variable_pb2
from tensorflow.core.protobuf import saved_model_pb2

from trainer import files, layers

v1 = tf.compat.v1

# Names of signatures and of outputs, in the order of search.
_SIGNATURES = ("image_feature_vector", "default", "serving_default")
_OUTPUTS = ("embeddings", "features", "default", "feature_vector")
_TRAIN = "train"  # tag of the TF1 graph whose batch norm uses the batch


# Scale and offset for pixels 0 to 255, per RGB channel or for all.
RANGES = {
    "0,1": (1 / 255, 0.0),
    "-1,1": (1 / 127.5, -1.0),
    "0,255": (1.0, 0.0),
    # (x / 255 - mean) / deviation of ImageNet, as in PyTorch's networks.
    "imagenet": (
        [1 / 255 / d for d in (0.229, 0.224, 0.225)],
        [-m / d for m, d in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)],
    ),
    # BGR minus ImageNet's mean, as in Caffe's networks; see `_scaled`.
    "caffe": (1.0, [-103.939, -116.779, -123.68]),
}


class SavedModel(NamedTuple):
    """The properties of a SavedModel.

    Attributes:
      folder: the folder.
      graphs: the TF1 meta graphs by whether they are for training; None for TF2.
      callable: whether a TF2 SavedModel can be called; otherwise it has only signatures.
      signature: name of the signature that takes images, None if there is none.
      dtype: dtype of the images, `tf.uint8` or `tf.float32`.
      input_range: the pixel range: a key of `RANGES`, or 'low,high'.
      image_size: (height, width) if fixed or stored, else None.
      fixed: whether it supports only this size.
      channels: 3 (RGB) or 1 (gray).
      features: dimensions of the output if they are known, else None.
      fingerprint: SHA-256 of graph and weights.
      resizing: how images are resized, fields of `metriclearn.augment.Resizing` by name, stored by
        this project; {} for the default.
    """

    folder: str
    graphs: dict | None
    callable: bool
    signature: str | None
    dtype: Any
    input_range: str
    image_size: tuple[int, int] | None
    fixed: bool
    channels: int
    features: int | None
    fingerprint: str
    resizing: dict

    @property
    def preprocessing(self):
        """Description of the scaling of pixels."""
        return "uint8" if self.dtype == tf.uint8 else f"scaled to {self.input_range}"


def read(folder, input_range=""):
    """Inspects a SavedModel without loading it.

    Only this function decides a SavedModel's signature, image size and pixel range, for training
    and embedding.

    Args:
      folder: a SavedModel of TF2, or of TF1 in TensorFlow Hub's format.
      input_range: a key of `RANGES`; '' if it is known: uint8 inputs get pixels unchanged, exports
        of this project store the range, and modules of TensorFlow Hub take 0 to 1.

    Raises:
      ValueError: it is not a SavedModel, it does not take one batch of images, or it takes floats
        and the pixel range is unknown.
    """
    folder = os.path.expanduser(folder)
    proto = _proto(folder)
    path = os.path.join(folder, "saved_model.pb")
    first = proto.meta_graphs[0]
    tf2 = first.HasField("object_graph_def")
    graphs = None
    if not tf2:
        graphs = {_TRAIN in g.meta_info_def.tags: g for g in reversed(proto.meta_graphs)}
        first = graphs.setdefault(False, first)
    nodes = first.object_graph_def.nodes
    called = tf2 and bool(nodes) and any(c.local_name == "__call__" for c in nodes[0].children)
    signature = _signature(first.signature_def)
    if not (called or signature):
        raise ValueError(
            f"{path}: it has neither __call__ nor a signature that takes images [B, H, W, 3]; "
            f"its signatures are {_described(first.signature_def)}"
        )
    dtype, size, features, channels = tf.float32, None, None, 3
    if signature:
        (taken,) = first.signature_def[signature].inputs.values()
        dtype = tf.dtypes.as_dtype(taken.dtype)
        height, width, depth = (dim.size for dim in taken.tensor_shape.dim[1:4])
        size = (height, width) if min(height, width) > 0 else None
        channels = 1 if depth == 1 else 3
        outputs = first.signature_def[signature].outputs
        if not called:
            shape = outputs[_output(list(outputs), path)].tensor_shape
            features = shape.dim[-1].size if shape.dim and shape.dim[-1].size > 0 else None
    note = noted(folder)
    noted_size = note.get("image_size")
    return SavedModel(
        folder,
        graphs,
        called,
        signature,
        dtype,
        _input_range(folder, first, dtype, note, input_range),
        size or (tuple(noted_size) if noted_size else None),
        size is not None,
        channels,
        note.get("features") or features,
        _fingerprint(folder),
        note.get("resizing") or {},
    )


def _proto(folder):
    path = os.path.join(folder, "saved_model.pb")
    proto = saved_model_pb2.SavedModel()
    try:
        with open(path, "rb") as file:
            proto.ParseFromString(file.read())
    except (OSError, DecodeError) as error:
        missing = isinstance(error, FileNotFoundError)
        reason = (
            "there is no such file; give the folder of a SavedModel"
            if missing
            else f"not a SavedModel that can be read: {error}"
        )
        raise ValueError(f"{path}: {reason}") from None
    if not proto.meta_graphs:
        raise ValueError(f"{path}: it holds no graph")
    return proto


def _input_range(folder, graph, dtype, note, asked):
    """The key of `RANGES`, or 'low,high', to which a SavedModel's images are scaled."""
    asked = asked.replace(" ", "")
    if asked and asked not in RANGES:
        raise ValueError(f"input range {asked!r} is not one of {' '.join(RANGES)}")
    if dtype == tf.uint8:
        if asked not in ("", "0,255"):
            raise ValueError(f"{folder}: takes uint8 pixels unchanged, not {asked}")
        return "0,255"
    own = note.get("input_range")
    if isinstance(own, list):
        own = ",".join(f"{float(value):g}" for value in own)
    if asked and own and asked != own:
        raise ValueError(f"{folder}: takes {own} by its prototrain.json, not {asked}")
    if asked or own:
        return asked or own
    hub = os.path.exists(os.path.join(folder, "tfhub_module.pb"))
    hub |= any(name.startswith("hub_module_attachment") for name in graph.collection_def)
    hub |= "image_feature_vector" in graph.signature_def
    if hub:
        return "0,1"
    raise ValueError(
        f"{folder}: takes floats, and does not state the pixel range of its training. Choose "
        f"one with --model.hub_input_range (training) or --input_range (embedding): "
        f"{'  '.join(RANGES)}"
    )


def _described(signatures):
    """Names of signatures with their inputs, for an error."""
    found = [
        f"{name}({', '.join(sorted(s.inputs))})"
        for name, s in sorted(signatures.items())
        if not name.startswith("__")
    ]
    return ", ".join(found) or "none"


def _signature(signatures):
    """Name of a signature whose only input can be a batch of images, or None."""
    for name in (*_SIGNATURES, *sorted(signatures)):
        if name in signatures and len(signatures[name].inputs) == 1:
            (taken,) = signatures[name].inputs.values()
            dims = taken.tensor_shape.dim
            image = len(dims) == 4 and dims[3].size in (3, 1, -1)
            if image and tf.dtypes.as_dtype(taken.dtype) in (tf.float32, tf.uint8):
                return name
    return None


def _output(names, path):
    for name in (*_OUTPUTS, *(names if len(names) == 1 else ())):
        if name in names:
            return name
    raise ValueError(
        f"{path}: which output has the features? It has {', '.join(sorted(names))}, and none is "
        f"named {' or '.join(_OUTPUTS)}"
    )


def noted(folder):
    """The note in SavedModels of this project; its checksum is verified."""
    path = os.path.join(folder, "assets.extra", "prototrain.json")
    if not os.path.exists(path):
        return {}
    note = files.known_keys(path, set(), "a SavedModel")
    if "checksum" in note:  # a note written by hand has none
        note = files.read_sealed(path, set(), "a SavedModel")
    sums = note.get("sha256", {})
    for name in sums if isinstance(sums, dict) else ():
        file = os.path.join(folder, name)
        if not os.path.isfile(file) or files.sha256(file) != sums[name]:
            raise ValueError(f"{file}: is damaged (its checksum differs); export the model again")
    return note


def _fingerprint(folder):
    digest = hashlib.sha256()
    variables = os.path.join(folder, "variables")
    names = sorted(os.listdir(variables)) if os.path.isdir(variables) else []
    for path in ("saved_model.pb", *(os.path.join("variables", name) for name in names)):
        digest.update(bytes.fromhex(files.sha256(os.path.join(folder, path))))
    return digest.hexdigest()


def apply(model, images, batch_statistics):
    """Builds it in the current graph and variable scope, or again with the same variables.

    Args:
      model: a `SavedModel`.
      images: RGB [B, H, W, 3], 0 to 255, uint8 or float.
      batch_statistics: Python bool: its training mode, if it has one.

    Returns:
      float32 [B, F]; a map of features [B, h, w, F] is averaged over positions.

    Raises:
      ValueError: it does not support the size of the images.
    """
    size = tuple(images.shape[1:3])
    if model.fixed and model.image_size != size:
        wanted = " x ".join(map(str, model.image_size))
        raise ValueError(f"{model.folder}: takes images of {wanted}, not {size[0]} x {size[1]}")
    if model.dtype == tf.uint8:
        pixels = tf.cast(images if images.dtype == tf.uint8 else tf.round(images), tf.uint8)
    else:
        pixels = scaled(tf.cast(images, tf.float32), model.input_range)
    run = _run_tf2 if model.graphs is None else _run_tf1
    try:
        output = run(model, pixels, batch_statistics)
    except Exception as error:  # TensorFlow raises many kinds for a damaged graph
        if isinstance(error, ValueError) and model.folder in str(error):
            raise
        raise ValueError(f"{model.folder}: cannot be loaded: {first_line(error)}") from error
    if isinstance(output, dict):
        output = output[_output(list(output), model.folder)]
    if not tf.is_tensor(output) or output.shape.rank not in (2, 4):
        raise ValueError(f"{model.folder}: its output {output} is not [B, F] or [B, h, w, F]")
    output = tf.cast(output, tf.float32)
    return tf.reduce_mean(output, [1, 2]) if output.shape.rank == 4 else output


def first_line(error):
    """An error's message without TensorFlow's stack and Keras's heading and colors."""
    if isinstance(error, KeyError):
        return f"the key {error} is missing"
    lines = re.sub(r"\x1b\[[\d;]*m", "", str(error)).splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    headed = len(lines) > 1 and lines[0].startswith("Exception encountered")
    return lines[headed] if lines else type(error).__name__


def scaled(pixels, input_range):
    """Scales float pixels 0 to 255 to the range of a network."""
    if input_range == "caffe":
        pixels = pixels[..., ::-1]
    if input_range in RANGES:
        scale, offset = RANGES[input_range]
    else:  # stored by this project
        low, high = (float(value) for value in input_range.split(","))
        scale, offset = (high - low) / 255, low
    return pixels * tf.constant(scale, tf.float32) + tf.constant(offset, tf.float32)


def _run_tf2(model, pixels, batch_statistics):
    loaded = _loaded(model)
    if not model.callable:
        return loaded.signatures[model.signature](pixels)
    try:
        return loaded(pixels, training=batch_statistics)
    except (TypeError, ValueError):  # its __call__ has no training mode
        pass
    try:
        return loaded(pixels)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{model.folder}: it cannot be called with {pixels.dtype.name} {pixels.shape}: "
            f"{str(error).splitlines()[0]}"
        ) from None


def _loaded(model):
    """The object in the folder, loaded once per graph under the current variable scope's name."""
    folder, scope = model.folder, v1.get_variable_scope().name
    # A tuple, like TensorFlow's private keys: such a collection is never written to files.
    kept = v1.get_collection_ref(("saved_model", folder, scope))
    if not kept:
        before = {v.op.name for v in v1.global_variables()}
        # Not under the tower's name: variables must have the same name in every graph.
        with v1.name_scope(f"{scope}/"):
            loaded = tf.saved_model.load(folder)
        own = getattr(loaded, "trainable_variables", None)
        chosen = None if own is None else {v.op.name for v in own}
        if not model.callable:
            _forget_unused(loaded.signatures[model.signature], before)
        for variable in v1.global_variables():
            name = variable.op.name
            if name in before:
                continue
            # Like TensorFlow's init_from_checkpoint: moving averages start from this value.
            value = variable.initializer.inputs[1]
            variable._initial_value = tf.ensure_shape(value, variable.shape)
            if variable.trainable if chosen is None else name in chosen:
                v1.add_to_collection(v1.GraphKeys.TRAINABLE_VARIABLES, variable)
        kept.append(loaded)
    return kept[0]


def _forget_unused(function, before):
    """Removes new variables that a function does not read from the graph's collections.

    Keras writes each variable twice into its exports; only one copy is read.
    """
    handles = {id(handle) for handle in function.captured_inputs}
    for key in (v1.GraphKeys.GLOBAL_VARIABLES, v1.GraphKeys.TRAINABLE_VARIABLES):
        kept = v1.get_collection_ref(key)
        kept[:] = [v for v in kept if v.op.name in before or id(v.handle) in handles]


def _run_tf1(model, pixels, batch_statistics):
    graph = model.graphs.get(bool(batch_statistics)) or model.graphs[False]
    signature = graph.signature_def[model.signature]
    (taken,) = signature.inputs.values()
    given = signature.outputs[_output(list(signature.outputs), model.folder)].name
    listed = graph.collection_def[v1.GraphKeys.UPDATE_OPS].node_list.value
    updates = [name.split(":")[0] for name in listed] if batch_statistics else []
    kept = v1.graph_util.extract_sub_graph(graph.graph_def, [given.split(":")[0], *updates])
    source = {taken.name: pixels} | _variables(model, graph, kept)
    output, *updates = tf.graph_util.import_graph_def(
        kept, source, return_elements=[given, *updates], name="imported"
    )
    for update in updates:
        v1.add_to_collection(v1.GraphKeys.UPDATE_OPS, update)
    return output


def _variables(model, graph, kept):
    """Handles of our variables for those of the graph, {tensor name: handle}.

    The nodes that created them become placeholders, which the import replaces.
    """
    prefix = os.path.join(model.folder, "variables", "variables")
    trained = set()
    for value in graph.collection_def[v1.GraphKeys.TRAINABLE_VARIABLES].bytes_list.value:
        trained.add(variable_pb2.VariableDef.FromString(value).variable_name)
    handles = {}
    for node in kept.node:
        if node.op in ("VariableV2", "Variable"):
            raise ValueError(
                f"{model.folder}: {node.name} is a reference variable, which TensorFlow 2 cannot "
                "share between towers; save it again with resource variables"
            )
        if node.op == "VarHandleOp":
            name = f"{node.name}:0"
            variable = v1.get_variable(
                node.name,
                tf.TensorShape(node.attr["shape"].shape),
                tf.dtypes.as_dtype(node.attr["dtype"].type),
                initializer=layers.read_from(prefix, node.name),
                trainable=name in trained,
            )
            handles[name] = variable.handle
            node.op = "Placeholder"
            node.attr.clear()
            node.attr["dtype"].type = tf.resource.as_datatype_enum
    return handles
