"""`python -m trainer.inspect --model=models.simple`: shows the parts of a model before training.

Prints every variable with its shape and parameters, whether it is trained and decayed, the
floating-point operations of the forward pass of one example, and the devices that share a batch.
"""

import functools
import sys
from types import ModuleType
from typing import Any, NoReturn

from absl import flags

from trainer import commandline, program, quiet

quiet.import_tensorflow()

import numpy as np  # noqa: E402 (after the quiet import)
import tensorflow as tf  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from trainer import data, towers  # noqa: E402
from trainer.config import Config, seed_of  # noqa: E402

v1 = tf.compat.v1

COUNTED = (
    "FLOPs: forward pass of one example, 2 per multiply-add of convolutions and matrix products "
    "that build() needs; biases, normalization, activations and pooling are not counted."
)


def inspect(model: ModuleType, config: Config) -> dict[str, Any]:
    """Builds a model like the trainer, without a session.

    Args:
      model: a model module.
      config: its `Config`.

    Returns:
      A dict:
        variables: list of dicts of `name`, `shape` (list), `dtype`, `parameters`, `trained`,
          `decayed` and `flops` (of the products with this variable as a factor, one example);
        flops: of one example's forward pass, including products without a variable;
        uncounted: names of operations whose products cannot be counted;
        devices: one name per tower.

    Raises:
      UserError: the trainer would refuse the model.
    """
    with tf.Graph().as_default():
        datasets, _ = data.load_datasets(model, v1.placeholder_with_default(np.int64(0), []))
        spec = datasets["trn"].element_spec
        data.check_batch(spec, config)
        devices = towers.devices(config["trainer.num_towers"])
        batch = {name: v1.placeholder(s.dtype, s.shape) for name, s in spec.items()}
        replicas = towers.replicate(
            model.build,
            batch,
            devices,
            train_phase=True,
            seed=seed_of(config["trainer.random_seed"]),
            step=tf.constant(0, tf.int64),
        )
        towers.loss_of(model, replicas, towers.gather(replicas))
        variables = v1.global_variables()
        trained = towers.select(v1.trainable_variables(), config, "model.trainable_variables")
        decayed = towers.decayed(trained, config)

        one = {name: v1.placeholder(s.dtype, [1, *s.shape[1:]]) for name, s in spec.items()}
        (example,) = towers.replicate(model.build, one, devices[:1], train_phase=False)
        flops, uncounted = count_flops([t for t in example.values() if tf.is_tensor(t)])
    kept, shrunk = ({v.op.name for v in vs} for vs in (trained, decayed))
    rows = [
        {
            "name": v.op.name,
            "shape": v.shape.as_list(),
            "dtype": v.dtype.base_dtype.name,
            "parameters": v.shape.num_elements(),
            "trained": v.op.name in kept,
            "decayed": v.op.name in shrunk,
            "flops": flops.get(v.op.name, 0),
        }
        for v in variables
    ]
    return {
        "variables": rows,
        "flops": sum(flops.values()),
        "uncounted": uncounted,
        "devices": devices,
    }


# ---------------------------------------------------------------------------- counting


def count_flops(tensors: list[tf.Tensor]) -> tuple[dict[str, int], list[str]]:
    """Counts the multiply-adds, times 2, that tensors of a graph with known shapes need.

    Returns:
      ({name of the variable that is a factor, or '': operations}, names of products with unknown
      shapes and of function calls, which are not counted).
    """
    flops, uncounted = {}, []
    for op in towers.ancestors(tensors):
        if op.type in ("PartitionedCall", "StatefulPartitionedCall", "XlaLaunch"):
            uncounted.append(op.name)
        if op.type not in _PRODUCTS:
            continue
        count = _PRODUCTS[op.type](op)
        if count is None:
            uncounted.append(op.name)
            continue
        factors = [name for name in map(_variable, op.inputs) if name]
        key = factors[-1] if factors else ""
        flops[key] = flops.get(key, 0) + count
    return flops, sorted(uncounted)


def _size(tensor):
    return tensor.shape.num_elements() if tensor.shape.rank is not None else None


def _times(*factors):
    return None if None in factors else 2 * int(np.prod(factors, dtype=np.int64))


def _convolution(op):
    """Each output needs one filter: the kernel's elements over its output channels."""
    kernel = op.inputs[1].shape
    channels = kernel[-1]
    return _times(_size(op.outputs[0]), _size(op.inputs[1]) // channels if channels else None)


def _depthwise(op):
    return _times(_size(op.outputs[0]), *op.inputs[1].shape[:2])


def _transposed(op):
    """Each input value needs one filter; inputs are (shape, kernel [.., out, in], values)."""
    kernel = op.inputs[1].shape
    channels = kernel[-1]
    return _times(_size(op.inputs[2]), _size(op.inputs[1]) // channels if channels else None)


def _matmul(op):
    transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
    shape = op.inputs[0].shape
    inner = shape[-2 if transposed else -1] if shape.rank else None
    return _times(_size(op.outputs[0]), inner)


def _einsum(op):
    """One multiply-add per combination of all indices."""
    sizes = {}
    for term, tensor in zip(
        op.get_attr("equation").decode().split("->")[0].split(","), op.inputs, strict=True
    ):
        if "..." in term or tensor.shape.rank is None:
            return None
        sizes |= dict(zip(term, tensor.shape, strict=True))
    return _times(*sizes.values())


_PRODUCTS = {
    "Conv1D": _convolution,
    "Conv2D": _convolution,
    "Conv3D": _convolution,
    "DepthwiseConv2dNative": _depthwise,
    "Conv2DBackpropInput": _transposed,
    "Conv3DBackpropInputV2": _transposed,
    "MatMul": _matmul,
    "BatchMatMul": _matmul,
    "BatchMatMulV2": _matmul,
    "BatchMatMulV3": _matmul,
    "Einsum": _einsum,
}


def _variable(tensor):
    """The name of the variable behind a tensor, also if cast or reshaped; '' if there is none."""
    op = tensor.op
    while op.type in ("Cast", "Identity", "Reshape", "Transpose", "ReadVariableOp"):
        op = op.inputs[0].op
    return op.name if op.type == "VarHandleOp" else ""


# ---------------------------------------------------------------------------- the report


def report(model: ModuleType, config: Config, found: dict[str, Any], console: Console) -> None:
    """Prints the result of `inspect`."""
    rows = found["variables"]
    table = Table(title=model.__name__)
    table.add_column("variable", overflow="fold")
    for name in ("shape", "parameters", "trained", "decayed", "FLOPs"):
        table.add_column(name, justify="right" if name in ("parameters", "FLOPs") else "left")
    for row in rows:
        table.add_row(
            row["name"],
            " x ".join(map(str, row["shape"])) or "scalar",
            f"{row['parameters']:,}",
            "yes" if row["trained"] else "no",
            "yes" if row["decayed"] else "no",
            f"{row['flops']:,}" if row["flops"] else "",
        )
    table.add_section()
    total, trained, decayed = (
        sum(row["parameters"] for row in rows if keep(row))
        for keep in (lambda row: True, lambda row: row["trained"], lambda row: row["decayed"])
    )
    totals = (f"{count:,}" for count in (total, trained, decayed, found["flops"]))
    table.add_row("total", "", *totals, style="bold")
    console.print(table)
    say = console.out
    say(COUNTED)
    if found["uncounted"]:
        say(f"Not counted, of unknown shape or content: {', '.join(found['uncounted'][:8])}")
    weight = config["model.weight_decay"]
    say(
        f"Weight decay: {weight:g} (model.weight_decay)" + ("" if weight else ", so nothing decays")
    )
    size, devices = config["model.batch_size"], found["devices"]
    each = size / len(devices)
    say(f"Towers: {len(devices)}, {each:g} of {size} examples on each: {', '.join(devices)}")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the program's flags."""
    (text,) = commandline.definers(values, "string")
    text("model", None, "Model to inspect: a module name.", short_name="m")


def main(options: flags.FlagValues, model: ModuleType, given: set[str], rest: list[str]) -> int:
    """The program, for `trainer.program.run`."""
    commandline.no_arguments(rest)
    found = inspect(model, model.config)
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    report(model, model.config, found, console)
    return 0


def run(argv: list[str] | None = None) -> NoReturn:
    """Runs the program on a command line, `sys.argv` by default."""
    options = flags.FlagValues()
    define_flags(options)
    program.run(functools.partial(main, options), argv, "stopped", flag_values=options)


if __name__ == "__main__":
    run()
