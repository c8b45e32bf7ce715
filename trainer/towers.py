"""One model on several devices: shared variables, split batches, one averaged gradient.

A tower is a copy of the model's graph on one device. All towers read the same variables, and each
gets its slice of each batch. The towers' outputs are joined in the order of the batch.
"""

import contextlib
import os
import re
import zlib

import tensorflow as tf

from trainer import layers
from trainer.config import UserError

v1 = tf.compat.v1

# Only the first tower adds to these: batch-norm updates, summaries, penalties.
_ONCE = (v1.GraphKeys.UPDATE_OPS, v1.GraphKeys.SUMMARIES, v1.GraphKeys.REGULARIZATION_LOSSES)
# Lets oneDNN keep a kernel as it first was: faster in a server, silently wrong in training.
_FROZEN = "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS"


def devices(num_towers=0):
    """Returns one device name per tower: GPUs if there are any, otherwise virtual CPU devices.

    Args:
      num_towers: number of towers; 0: one per visible GPU, or one CPU.

    Raises:
      UserError: there are GPUs, but too few.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return [f"/device:CPU:{i}" for i in range(max(num_towers, 1))]
    if num_towers > len(gpus):
        raise UserError(
            f"trainer.num_towers={num_towers}, but {len(gpus)} GPUs are visible "
            "(see CUDA_VISIBLE_DEVICES)."
        )
    return [f"/device:GPU:{i}" for i in range(num_towers or len(gpus))]


def session_config(config, tower_devices):
    """Returns the ConfigProto of a session for these devices, from the `trainer.*` keys."""
    if os.environ.get(_FROZEN, "").lower() in ("1", "true"):
        raise UserError(
            f"{_FROZEN} is set: oneDNN would compute with old weights. Unset it to train."
        )
    proto = v1.ConfigProto(
        allow_soft_placement=True,
        intra_op_parallelism_threads=config["trainer.intra_op_threads"],
        inter_op_parallelism_threads=config["trainer.inter_op_threads"],
    )
    if "CPU" in tower_devices[0]:
        proto.device_count["CPU"] = len(tower_devices)
    proto.gpu_options.allow_growth = True
    rewrites = proto.graph_options.rewrite_options
    precision, on_cpu = config["trainer.mixed_precision"], "CPU" in tower_devices[0]
    if precision == "auto":  # float16 could underflow, and GPUs use TensorFloat-32 by default
        precision = "bfloat16" if on_cpu and _computes_in_bfloat16() else ""
    if precision and precision != ("bfloat16" if on_cpu else "float16"):
        raise UserError(
            f"trainer.mixed_precision={precision}: TensorFlow's graph optimizer supports bfloat16 "
            "on a CPU, and float16 on a GPU, without loss scaling. Set that, or leave it empty."
        )
    if precision == "bfloat16":
        rewrites.auto_mixed_precision_onednn_bfloat16 = type(rewrites).ON
        os.environ.setdefault(*_KEEP_FLOAT32)
    elif precision:
        rewrites.auto_mixed_precision = type(rewrites).ON
    if config["trainer.xla"]:
        level = v1.OptimizerOptions.ON_1
        proto.graph_options.optimizer_options.global_jit_level = level
    return proto


def _computes_in_bfloat16():
    """Whether this processor has bfloat16 instructions; without them it is slower than float32."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return "_bf16" in file.read()
    except OSError:
        return False


# The CPU kernels of these gradients are up to 70 times slower in bfloat16 (the input of a strided
# depthwise convolution): a MobileNet would train slower than in float32.
_KEEP_FLOAT32 = (
    "TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_ALLOWLIST_REMOVE",
    "DepthwiseConv2dNativeBackpropFilter,DepthwiseConv2dNativeBackpropInput",
)


_threads_in_use = []


def set_threads(config):
    """Sets the process-wide numbers of threads, before TensorFlow creates its thread pools.

    Returns:
      A sentence for each key that has no effect because the process already has its pools.
    """
    keys = "trainer.intra_op_threads", "trainer.inter_op_threads"
    threading = tf.config.threading
    setters = threading.set_intra_op_parallelism_threads, threading.set_inter_op_parallelism_threads
    wanted = [config[key] for key in keys]
    late = []
    for key, count, setter, used in zip(
        keys, wanted, setters, _threads_in_use or wanted, strict=True
    ):
        try:
            if count != used:
                raise RuntimeError
            setter(count)
        except RuntimeError:
            late.append(
                f"{key}={count} has no effect: this process has already started its threads."
            )
    _threads_in_use[:] = _threads_in_use or wanted
    return late


def ancestors(tensors):
    """Returns the operations that tensors depend on, including their own, as a list."""
    found, left = {}, [tensor.op for tensor in tensors]
    while left:
        op = left.pop()
        if op.name not in found:
            found[op.name] = op
            left.extend(tensor.op for tensor in op.inputs)
            left.extend(op.control_inputs)
    return list(found.values())


def guard(updates, finite):
    """Makes updates of the model, such as batch-norm averages, wait for a check.

    Args:
      updates: operations or tensors of UPDATE_OPS.
      finite: tensor of the check that loss and gradients are finite.

    Returns:
      The names of the operations that the check depends on: nothing is assigned while these run.
    """
    before = {op.name for op in ancestors([finite])}
    for update in updates:
        op = getattr(update, "op", update)
        if op.name not in before:
            op._add_control_input(finite.op)
    return before


def written_by(names):
    """Returns the names of the variables that operations among `names` assign, a set."""
    graph = v1.get_default_graph()
    written = set()
    for op in map(graph.get_operation_by_name, names):
        if re.match(r"Assign|ResourceScatter", op.type):
            handle = op.inputs[0].op
            while handle.type in ("Identity", "Switch") and handle.inputs:
                handle = handle.inputs[0].op
            written.add(handle.name)
    return written


def failed_before(error, names):
    """Returns whether an error of a step came only from operations among `names`."""
    known = {op.name for op in v1.get_default_graph().get_operations()}
    failed = known & set(re.findall(r"\[\[(?:\{\{node )?([^\]}]+)", error.message))
    return bool(failed) and failed <= names


def split(inputs, count):
    """Splits a batch, a dict of tensors [B, …], into `count` dicts of consecutive examples.

    Raises:
      UserError: a known B is not a multiple of `count`.
    """
    if count == 1:
        return [dict(inputs)]
    parts = [{} for _ in range(count)]
    with v1.device("/device:CPU:0"):
        for name, tensor in inputs.items():
            size = tensor.shape[0]
            if size is not None:
                if size % count:
                    raise UserError(
                        f"model.batch_size={size} is not a multiple of {count} towers "
                        "(trainer.num_towers)."
                    )
                pieces = tf.split(tensor, count)
            else:
                bounds = [tf.shape(tensor)[0] * i // count for i in range(count + 1)]
                pieces = [tensor[bounds[i] : bounds[i + 1]] for i in range(count)]
            for part, piece in zip(parts, pieces, strict=True):
                part[name] = piece
    return parts


def replicate(build, inputs, tower_devices, *, train_phase, seed=0, step=0, averages=None, first=0):
    """Builds one tower per device over shared variables.

    Args:
      build: the model's `build(inputs, train_phase)`.
      inputs: a batch: dict of tensors [B, …].
      tower_devices: device names, one per tower.
      train_phase: Python bool given to `build`.
      seed, step: keys of random layers, an int and an int64 scalar tensor.
      averages: a `tf.compat.v1.train.ExponentialMovingAverage`: read its averages instead of the
        variables.
      first: position of the batch's first example in the global batch.

    Returns:
      A list of the towers' outputs.
    """
    towers = []
    offset = tf.constant(first, tf.int64)
    scope = v1.get_variable_scope()
    for i, part in enumerate(split(inputs, len(tower_devices))):
        device = _with_variables_on(_variable_device(tower_devices), tower_devices[i])
        collections = contextlib.nullcontext() if i == 0 and train_phase else keep_collections()
        phase = "train" if train_phase else "eval"
        with (
            collections,
            v1.device(device),
            v1.variable_scope(
                scope,
                reuse=True if i or not train_phase else None,
                custom_getter=_getter(averages),
                auxiliary_name_scope=False,
            ),
            v1.name_scope(f"{phase}/tower_{i}/"),
            layers.replica(seed, step, offset) if train_phase else contextlib.nullcontext(),
        ):
            outputs = build(part, train_phase)
        if not hasattr(outputs, "items"):
            raise UserError(
                f"build() returned {type(outputs).__name__}; it must return a ModelDict of outputs."
            )
        towers.append(layers.ModelDict(outputs))
        with v1.device("/device:CPU:0"):
            offset += tf.shape(next(iter(part.values())), out_type=tf.int64)[0]
    return towers


def _variable_device(tower_devices):
    # A single GPU holds its variables; several devices share them through the host.
    return tower_devices[0] if len(tower_devices) == 1 else "/device:CPU:0"


def _with_variables_on(variable_device, tower_device):
    def place(op):
        return variable_device if op.type in ("VarHandleOp", "VariableV2") else tower_device

    return place


@contextlib.contextmanager
def keep_collections():
    """Within this context the collections of updates, summaries and penalties do not change."""
    graph = v1.get_default_graph()
    kept = {key: list(graph.get_collection_ref(key)) for key in _ONCE}
    try:
        yield
    finally:
        for key, values in kept.items():
            graph.get_collection_ref(key)[:] = values


def _getter(averages):
    """Seeds initializers by variable name, and optionally reads moving averages.

    TensorFlow derives an unseeded initializer's seed from the number of operations before it, so
    the initial weights would change with the number of towers or with edits elsewhere.
    """

    def getter(getter, name, *args, **kwargs):
        initializer = kwargs.get("initializer")
        if initializer is None and kwargs.get("dtype", tf.float32).is_floating:
            initializer = v1.glorot_uniform_initializer()
        if getattr(initializer, "seed", 0) is None:
            config = initializer.get_config() | {"seed": zlib.crc32(name.encode()) % 2**31}
            initializer = type(initializer).from_config(config)
        variable = getter(name, *args, **kwargs | {"initializer": initializer})
        average = averages and averages.average(variable)
        return variable if average is None else average

    return getter


def gather(towers):
    """Joins the towers' outputs: tensors [b, …] are concatenated in batch order, scalars averaged.

    Non-float scalars and values that are not tensors are taken from the first tower.
    """
    if len(towers) == 1:
        return towers[0]
    joined = layers.ModelDict()
    with v1.device("/device:CPU:0"):
        for name, first in towers[0].items():
            parts = [tower[name] for tower in towers]
            if not tf.is_tensor(first) or (first.shape.rank == 0 and not first.dtype.is_floating):
                joined[name] = first
            elif first.shape.rank == 0:
                joined[name] = tf.add_n(parts) / len(parts)
            else:
                joined[name] = tf.concat(parts, 0)
    return joined


def embedding_spread(embeddings):
    """Mean squared distance of embeddings [B, D] to their center, over their mean squared length.

    1 if embeddings point in all directions, 0 if they have collapsed to one point.
    """
    centered = embeddings - tf.reduce_mean(embeddings, 0, keepdims=True)
    return tf.math.divide_no_nan(
        tf.reduce_mean(tf.square(centered)), tf.reduce_mean(tf.square(embeddings))
    )


def loss_of(model, towers, outputs):
    """Returns the loss to differentiate, and named scalars to report.

    The model's `loss(outputs)`, if it has one, is called once on the joined outputs of all towers:
    negatives are mined over the whole batch. Otherwise the loss is the mean of the towers' `loss`.

    If `loss(outputs)` returns a dict, its other entries are added to `outputs`: scalars to report,
    `hardest_triplet` to display, mined indices for the record of a step that is not finite.

    Returns:
      (float scalar tensor, dict of scalar tensors: every other scalar float output).
    """
    if hasattr(model, "loss"):
        with v1.name_scope("loss/"):
            result = model.loss(outputs)
        terms = layers.ModelDict(result) if hasattr(result, "items") else {"loss": result}
    else:
        terms = dict(outputs)
    loss = terms.pop("loss", None)
    if loss is None or loss.shape.rank != 0:
        raise UserError(
            f"{model.__name__}: build() must set a scalar `loss`, or the module must define "
            "loss(outputs) that returns one (or a dict with `loss`)."
        )
    outputs.update(terms)
    return loss, {
        name: value
        for name, value in dict.items(outputs)  # unchanged: rows of other workers are not needed
        if name != "loss"
        and tf.is_tensor(value)
        and value.shape.rank == 0
        and value.dtype.is_floating
    }


def l2_loss(variables, config):
    """Returns `model.weight_decay` * sum(v ** 2) / 2 over the variables; None without variables."""
    if not variables:
        return None
    return config["model.weight_decay"] * tf.add_n([tf.nn.l2_loss(v) for v in variables])


def gradients(model, towers, loss, variables, tower_devices):
    """Returns [(gradient, variable)] of the loss, averaged over towers.

    A model-level loss is differentiated once through the join, with each op's gradient on the op's
    device: without colocation all back-propagation would run on one device, and one call per tower
    would cost N squared passes. Otherwise each tower differentiates its loss, and the mean is
    computed on the variable's device; sparse gradients stay sparse.
    """
    if hasattr(model, "loss") or len(towers) == 1:
        grads = v1.gradients(loss, variables, colocate_gradients_with_ops=True)
    else:
        each = [
            v1.gradients(tower["loss"], variables, colocate_gradients_with_ops=True)
            for tower in towers
        ]
        with v1.device(_variable_device(tower_devices)):
            grads = [_mean(parts, len(towers)) for parts in zip(*each, strict=True)]
    if all(g is None for g in grads):
        raise UserError(
            "No trained variable has a gradient: the loss does not depend on any of "
            f"{', '.join(v.op.name for v in variables[:5])}…"
        )
    return [(g, v) for g, v in zip(grads, variables, strict=True) if g is not None]


def add_penalty(grads_and_vars, penalty, variables):
    """Adds the gradient of a penalty on `variables`, or of None, to [(gradient, variable)]."""
    if penalty is None:
        return grads_and_vars
    known = {v.ref(): g for g, v in grads_and_vars}
    extra = v1.gradients(penalty, variables)
    pairs = [(_sum(known.get(v.ref()), e), v) for e, v in zip(extra, variables, strict=True)]
    return [(g, v) for g, v in pairs if g is not None]


def _mean(parts, count):
    """The mean of a variable's gradients; a tower that does not use the variable counts as 0."""
    parts = [p for p in parts if p is not None]
    if not parts:
        return None
    if any(isinstance(p, tf.IndexedSlices) for p in parts):
        if all(isinstance(p, tf.IndexedSlices) for p in parts):
            return tf.IndexedSlices(
                tf.concat([p.values for p in parts], 0) / count,
                tf.concat([p.indices for p in parts], 0),
                parts[0].dense_shape,
            )
        parts = [tf.convert_to_tensor(p) for p in parts]
    return tf.add_n(parts) * (1 / count)


def _sum(a, b):
    if a is None or b is None:
        return b if a is None else a
    return tf.convert_to_tensor(a) + b


def accumulate(grads_and_vars, count, micro_step):
    """Averages the gradients of `count` consecutive batches.

    Args:
      grads_and_vars: [(gradient, variable)] of one batch.
      count: batches per step.
      micro_step: int64 variable that counts the batches of the current step.

    Returns:
      (op that only adds one batch's gradients, or None if count is 1; [(mean gradient, variable)]
      over the step's last batch and those added before; reading it resets the sums).
    """
    if count == 1:
        return None, grads_and_vars
    add, means = [], []
    for gradient, variable in grads_and_vars:
        with v1.device(variable.device):
            with tf.control_dependencies(None):  # the initial value must not depend on a gradient
                total = v1.Variable(
                    tf.zeros(variable.shape),
                    trainable=False,
                    collections=[v1.GraphKeys.LOCAL_VARIABLES],
                    name=f"accumulated/{variable.op.name}",
                )
            gradient = tf.convert_to_tensor(gradient)
            add.append(total.assign_add(gradient).op)
            mean = (total.read_value() + gradient) / count
            with tf.control_dependencies([mean]):
                empty = total.assign(tf.zeros_like(mean)).op
            with tf.control_dependencies([empty]):
                means.append((tf.identity(mean), variable))
    with tf.control_dependencies([mean for mean, _ in means]):
        restart = micro_step.assign(0).op
    with tf.control_dependencies([restart]):
        means = [(tf.identity(mean), variable) for mean, variable in means]
    return tf.group(*add, micro_step.assign_add(1).op), means


def clip(grads_and_vars, config):
    """Clips averaged gradients by value, then by global norm (keys `model.clip_gradients*`)."""
    low, high = (config[f"model.clip_gradients.{k}val"] for k in ("min", "max"))
    limit = config["model.clip_gradients.global_norm"]
    grads, variables = zip(*grads_and_vars, strict=True)
    if config["model.clip_gradients"]:
        if low >= high:
            raise UserError(f"model.clip_gradients: minval {low} is not below maxval {high}.")
        grads = [tf.clip_by_value(tf.convert_to_tensor(g), low, high) for g in grads]
    if limit > 0:
        grads, _ = tf.clip_by_global_norm([tf.convert_to_tensor(g) for g in grads], limit)
    return list(zip(grads, variables, strict=True))


def select(variables, config, prefix):
    """Returns the variables chosen by both `<prefix>.filter_fn` and `<prefix>.filter_regex`.

    Raises:
      UserError: the filters choose nothing, or the regular expression is malformed.
    """
    fn, regex = config[f"{prefix}.filter_fn"], config[f"{prefix}.filter_regex"]
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise UserError(f"{prefix}.filter_regex={regex!r}: {error}.") from None
    chosen = [v for v in variables if (fn is None or fn(v)) and pattern.search(v.op.name)]
    if not chosen:
        names = ", ".join(v.op.name for v in variables[:8])
        raise UserError(f"{prefix}.filter_fn / filter_regex choose no variable of: {names} …")
    return chosen


def decayed(variables, config):
    """Returns the decayed variables: those that the filters choose, otherwise all kernels."""
    prefix = "model.weight_decay"
    if config[prefix] == 0:
        return []
    if config[f"{prefix}.filter_fn"] is None and not config[f"{prefix}.filter_regex"]:
        return [v for v in variables if v.shape.rank >= 2]
    return select(variables, config, prefix)
