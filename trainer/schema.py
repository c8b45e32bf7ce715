"""Every key that all models share: its type, default, meaning and allowed values.

A model adds keys of its own with `config.declare`. Types are written as in the documentation's
tables: `bool int float str func list(int) list(float) list(str)`.
"""

import re
from typing import Any, NamedTuple


class Key(NamedTuple):
    """One declared configuration key; `Config.declare` explains the fields."""

    name: str
    type: str
    default: Any
    doc: str
    choices: tuple[Any, ...] = ()
    fixed: bool = False
    within: str = ""
    path: bool = False
    essential: bool = False
    needs: str = ""


def inside(value: Any, within: str) -> bool:
    """Returns whether a number is in a range such as '[0, 1)'; a NaN is in no range.

    Every value is in the range ''; values that are not numbers are in every range.
    """
    if not within or isinstance(value, bool) or not isinstance(value, int | float):
        return True
    match = re.fullmatch(r"([\[(])(.+), (.+)([\])])", within)
    if match is None:
        raise ValueError(f"{within!r} is not a range; write it as '[0, 1)' or '(0, inf)'.")
    low, high = float(match[2]), float(match[3])
    above = value >= low if match[1] == "[" else value > low
    below = value <= high if match[4] == "]" else value < high
    return above and below


def _of(method: str, name: str, default: Any, doc: str, within: str = "") -> Key:
    """The key of an option that only one optimizer or schedule has."""
    group = "optimizer" if method in OPTIMIZERS else "lr_schedule"
    return Key(
        f"model.{group}.{method}.{name}",
        type(default).__name__,
        default,
        doc,
        within=within,
        essential=name == "value",
        needs=f"model.{group}.method={method}",
    )


OPTIMIZERS = ("msgd", "adam", "rmsprop", "sgd", "adamw", "lamb")
SCHEDULES = ("step", "exp", "constant", "custom", "cosine", "polynomial")
FROM_0, FROM_1, BELOW_1 = "[0, inf)", "[1, inf)", "[0, 1)"

# fmt: off
# name, type, default, help, then other fields

TRAINER = (
    Key("trainer.experiment_base_dir", "str", "experiments",
        "Folder that holds all experiments.", path=True, essential=True),
    Key("trainer.experiment_name", "str", "exp-default",
        "Name of this experiment: its logs, checkpoints and summaries go to <base_dir>/<name>. "
        "Suggested form: exp-<initials>-<descriptive_name>-<run_number>.", essential=True),
    Key("trainer.validation_step_interval", "int", 10,
        "Steps between single batches of validation data (0: never).", within=FROM_0),
    Key("trainer.evaluation_interval", "int", 0,
        "Steps between full passes over the validation data, which also call the model's "
        "metrics(outputs) (0: never).", within=FROM_0, essential=True),
    Key("trainer.summary_save_interval", "int", 100,
        "Steps between TensorBoard summaries (0: never).", within=FROM_0),
    Key("trainer.summary_histograms", "bool", False,
        "Add histograms of every trained variable and its gradient to the summaries.",
        needs="trainer.summary_save_interval"),
    Key("trainer.summary_images", "bool", True,
        "Add input images, and the hardest triplet if the model names one, to the summaries.",
        needs="trainer.summary_save_interval"),
    Key("trainer.log", "func", None,
        "log(split, step, values): called with every line of metrics.jsonl, to send the figures to "
        "another logger; split is trn or vld, values is {name: float}."),
    Key("trainer.print_interval", "int", 10,
        "Steps between progress reports (0: only at the end).", within=FROM_0),
    Key("trainer.checkpoint_save_interval", "int", 500,
        "Steps between checkpoints (0: only at the end).", within=FROM_0),
    Key("trainer.max_checkpoints_to_keep", "int", 5,
        "Number of newest checkpoints to keep; the best one is kept in addition.", within=FROM_1),
    Key("trainer.best_metric", "str", "",
        "Validation figure of the full pass (loss, or a name that metrics(outputs) returns) whose "
        "best checkpoint is kept in checkpoint/best. min:NAME or max:NAME states what is better; "
        "otherwise losses, errors and ranks are better when lower, other figures when higher.",
        needs="trainer.evaluation_interval"),
    Key("trainer.early_stopping_patience", "int", 0,
        "Stop after this many full validation passes without a better trainer.best_metric (0: "
        "never).", within=FROM_0, needs="trainer.evaluation_interval"),
    Key("trainer.random_seed", "str", "0",
        "Seed of weights, batches, augmentation and dropout. A whole number or "
        "any text.", fixed=True),
    Key("trainer.num_towers", "int", 0,
        "Copies of the model that share each batch. 0: one tower per visible GPU, or one on the "
        "CPU. Without GPUs, N towers run on N virtual CPU devices.", within=FROM_0),
    Key("trainer.cluster_timeout", "int", 300,
        "Seconds after which a worker that does not answer counts as lost. It must exceed the time "
        "of the first step, and of saving a checkpoint.", within=FROM_1),
    Key("trainer.mixed_precision", "str", "",
        "Compute matrix products in a 16-bit type; variables stay float32. bfloat16 works only on "
        "a CPU, float16 only on a GPU (without loss scaling), as TensorFlow's graph optimizer "
        "allows. auto: bfloat16 on a CPU with bfloat16 instructions, otherwise float32.",
        choices=("", "auto", "bfloat16", "float16")),
    Key("trainer.xla", "bool", False, "Compile the graph with XLA (often slower on CPU)."),
    Key("trainer.intra_op_threads", "int", 0,
        "Threads within an operation (0: all cores).", within=FROM_0),
    Key("trainer.inter_op_threads", "int", 0,
        "Operations that run at the same time (0: one per core).", within=FROM_0),
    Key("trainer.profile_steps", "list(int)", [],
        "First and last step of a profile trace, written for TensorBoard's profiler.",
        within=FROM_1),
)

MODEL = (
    Key("model.weights_load_path", "str", "",
        "Checkpoint, or folder of checkpoints, from which a new experiment starts: variables of "
        "the same name and shape are loaded, the others are listed.", path=True, essential=True),
    Key("model.batch_size", "int", 64,
        "Batch size, over all towers and workers.", fixed=True, within=FROM_1, essential=True),
    Key("model.num_steps", "int", 1000,
        "Number of steps to train (0: save the initial weights).", within=FROM_0, essential=True),
    Key("model.trainable_variables.filter_fn", "func", None,
        "fn(v) -> bool: whether variable v is trained."),
    Key("model.trainable_variables.filter_regex", "str", "",
        "Train only variables whose name contains a match of this regular expression."),
    Key("model.weight_decay", "float", 0.0,
        "Weight of the L2 loss, sum(v ** 2) / 2 over the decayed variables; adamw and lamb decay "
        "the weights directly instead.", within=FROM_0),
    Key("model.weight_decay.filter_fn", "func", None,
        "fn(v) -> bool: whether variable v is decayed. Without a filter: trained variables with "
        "two or more dimensions (kernels, not biases and scales).", needs="model.weight_decay"),
    Key("model.weight_decay.filter_regex", "str", "",
        "Decay only variables whose name contains a match of this regular expression.",
        needs="model.weight_decay"),
    Key("model.learning_rate_factor", "float", 1.0,
        "Factor on the learning rate of the variables that its filters choose (without filters: "
        "all); 0.1 for a pretrained part is common.", within=FROM_0),
    Key("model.learning_rate_factor.filter_fn", "func", None,
        "fn(v) -> bool: whether the factor applies to variable v.",
        needs="model.learning_rate_factor!=1.0"),
    Key("model.learning_rate_factor.filter_regex", "str", "",
        "The factor applies to variables whose name contains a match of this regular expression.",
        needs="model.learning_rate_factor!=1.0"),
    Key("model.learning_rate_factor.from_step", "int", 0,
        "Completed steps during which these variables are frozen, so that others, such as a new "
        "head, are trained first; then their rate rises over model.lr_schedule.warmup_steps.",
        within=FROM_0),
    Key("model.layer_decay", "float", 1.0,
        "Factor on the learning rate for each block between a variable and the head (layer-wise "
        "decay; 0.65 to 0.9 is common for vision transformers).", within="(0, 1]"),
    Key("model.clip_gradients", "bool", False,
        "Clip each element of the averaged gradients to [minval, maxval]."),
    Key("model.clip_gradients.minval", "float", -1.0,
        "Minimum gradient value.", within="[-inf, inf]", needs="model.clip_gradients"),
    Key("model.clip_gradients.maxval", "float", 1.0,
        "Maximum gradient value.", within="[-inf, inf]", needs="model.clip_gradients"),
    Key("model.clip_gradients.global_norm", "float", 0.0,
        "Scale all averaged gradients so that their global norm is at most this (0: off).",
        within=FROM_0),
    Key("model.gradient_accumulation_steps", "int", 1,
        "Number of batches whose gradients are averaged per step.", fixed=True, within=FROM_1),
    Key("model.ema_decay", "float", 0.0,
        "Decay of a moving average of the weights, used for validation, evaluation and export (0: "
        "off; 0.999 is common).", fixed=True, within=BELOW_1),
)

OPTIMIZER = (
    Key("model.optimizer.method", "str", "msgd",
        "Optimizer: msgd is momentum SGD.", choices=OPTIMIZERS, fixed=True, essential=True),
    _of("msgd", "momentum", 0.9, "Momentum of msgd.", BELOW_1),
    _of("msgd", "use_nesterov", False, "Nesterov's momentum in msgd."),
    _of("adam", "beta1", 0.9, "Decay of the mean, in adam.", BELOW_1),
    _of("adam", "beta2", 0.999, "Decay of the uncentered variance, in adam.", BELOW_1),
    _of("adam", "epsilon", 1e-08, "Added to the denominator, in adam.", FROM_0),
    _of("rmsprop", "decay", 0.9, "Decay of the squared mean, in rmsprop.", BELOW_1),
    _of("rmsprop", "momentum", 0.0, "Momentum of rmsprop.", BELOW_1),
    _of("rmsprop", "epsilon", 1e-10, "Added under the root, in rmsprop.", FROM_0),
    _of("adamw", "beta1", 0.9, "Decay of the mean, in adamw.", BELOW_1),
    _of("adamw", "beta2", 0.999, "Decay of the variance, in adamw.", BELOW_1),
    _of("adamw", "epsilon", 1e-08, "Added to the denominator, in adamw.", FROM_0),
    _of("lamb", "beta1", 0.9, "Decay of the mean, in lamb.", BELOW_1),
    _of("lamb", "beta2", 0.999, "Decay of the variance, in lamb.", BELOW_1),
    _of("lamb", "epsilon", 1e-06, "Added to the denominator, in lamb.", FROM_0),
)

SCHEDULE = (
    Key("model.lr_schedule.method", "str", "constant",
        "Learning rate schedule.", choices=SCHEDULES, essential=True),
    Key("model.lr_schedule.warmup_steps", "int", 0,
        "Steps over which the rate rises linearly from 0 to the schedule's rate (0: none).",
        within=FROM_0),
    Key("model.lr_schedule.step.boundaries", "list(int)", [],
        "Completed steps after which the next value applies.",
        within=FROM_0, needs="model.lr_schedule.method=step"),
    Key("model.lr_schedule.step.values", "list(float)", [],
        "Learning rates, one more than boundaries; the first is the initial rate.",
        within=FROM_0, essential=True, needs="model.lr_schedule.method=step"),
    _of("constant", "value", 0.01, "The learning rate of the whole run.", FROM_0),
    _of("exp", "value", 0.01, "Initial learning rate.", FROM_0),
    _of("exp", "decay_rate", 0.95, "Factor per decay.", "(0, inf)"),
    _of("exp", "decay_steps", 1000.0, "Steps between decays.", "(0, inf)"),
    _of("exp", "staircase", True,
        "Decay every decay_steps; otherwise continuously at every step."),
    _of("cosine", "value", 0.01, "Initial learning rate.", FROM_0),
    _of("cosine", "end_value", 0.0, "Rate at model.num_steps.", FROM_0),
    _of("polynomial", "value", 0.01, "Initial learning rate.", FROM_0),
    _of("polynomial", "end_value", 0.0, "Rate at model.num_steps.", FROM_0),
    _of("polynomial", "power", 1.0, "Power of the decay; 1 is linear.", "(0, inf)"),
    Key("model.lr_schedule.custom.fn", "func", None,
        "fn(step) -> float tensor: the learning rate for an int64 tensor of completed steps.",
        needs="model.lr_schedule.method=custom"),
)

# fmt: on

SECTIONS = {
    "Trainer": TRAINER,
    "Model": MODEL,
    "Optimizer": OPTIMIZER,
    "Learning rate schedule": SCHEDULE,
}
KEYS = {key.name: key for section in SECTIONS.values() for key in section}
