"""Every key that all models share: its type, default, meaning and allowed values.

A model adds keys of its own with `config.declare`. Types are written as in the documentation's
tables: `bool int float str func list(int) list(float) list(str)`.
"""

from typing import Any, NamedTuple


class Key(NamedTuple):
    """One declared configuration key."""

    name: str
    type: str
    default: Any
    doc: str
    choices: tuple = ()
    # A change of this key makes a different run: resuming with it is refused unless allowed.
    fixed: bool = False


OPTIMIZERS = ("msgd", "adam", "rmsprop", "sgd", "adamw", "lamb")
SCHEDULES = ("step", "exp", "constant", "custom", "cosine", "polynomial")

TRAINER = (
    Key("trainer.experiment_base_dir", "str", "experiments", "Folder that holds all experiments."),
    Key(
        "trainer.experiment_name",
        "str",
        "exp-default",
        "Name of this experiment: its logs, checkpoints and summaries go to <base_dir>/<name>. "
        "Suggested form: exp-<initials>-<descriptive_name>-<run_number>.",
    ),
    Key(
        "trainer.validation_step_interval",
        "int",
        10,
        "Steps between running one batch of validation data (0: never).",
    ),
    Key(
        "trainer.evaluation_interval",
        "int",
        0,
        "Steps between full passes over the validation data, which also call the model's "
        "metrics(outputs) (0: never).",
    ),
    Key("trainer.summary_save_interval", "int", 100, "Steps between TensorBoard summaries."),
    Key(
        "trainer.summary_histograms",
        "bool",
        False,
        "Add histograms of every trained variable and of its gradient to the summaries.",
    ),
    Key(
        "trainer.summary_images",
        "bool",
        True,
        "Add input pictures, and the hardest triplet where the model names one, to the summaries.",
    ),
    Key("trainer.print_interval", "int", 10, "Steps between progress reports."),
    Key("trainer.checkpoint_save_interval", "int", 500, "Steps between checkpoints."),
    Key(
        "trainer.max_checkpoints_to_keep",
        "int",
        5,
        "Newest checkpoints to keep; the best one is kept beside them.",
    ),
    Key(
        "trainer.best_metric",
        "str",
        "",
        "Validation figure of the full pass (loss, or a name that metrics(outputs) returns) whose "
        "best checkpoint is kept in checkpoint/best. Losses and ranks count as better when lower.",
    ),
    Key(
        "trainer.early_stopping_patience",
        "int",
        0,
        "Stop after this many full validation passes without a better trainer.best_metric "
        "(0: never).",
    ),
    Key(
        "trainer.random_seed",
        "str",
        "0",
        "Seed of everything random: weights, batches, augmentation, dropout. A whole number or "
        "any text.",
        fixed=True,
    ),
    Key(
        "trainer.num_towers",
        "int",
        0,
        "Copies of the model that share each batch. 0: one a visible GPU, or one CPU tower; "
        "without GPUs, N gives N virtual CPU devices.",
    ),
    Key(
        "trainer.mixed_precision",
        "str",
        "",
        "Let the graph optimizer run matrix work in a 16-bit type; variables stay float32.",
        choices=("", "bfloat16", "float16"),
    ),
    Key("trainer.xla", "bool", False, "Compile the graph with XLA (often slower on CPU)."),
    Key("trainer.intra_op_threads", "int", 0, "Threads within one operation (0: all cores)."),
    Key("trainer.inter_op_threads", "int", 0, "Operations run side by side (0: all cores)."),
    Key(
        "trainer.profile_steps",
        "list(int)",
        [],
        "First and last step of a profile trace, written for TensorBoard's profiler.",
    ),
)

MODEL = (
    Key(
        "model.weights_load_path",
        "str",
        "",
        "Checkpoint, or folder of checkpoints, to start a new experiment from: every variable of "
        "the same name and shape is loaded, and what is not is listed.",
    ),
    Key("model.batch_size", "int", 64, "Full batch size, over all towers.", fixed=True),
    Key("model.num_steps", "int", 1000, "Number of steps to train."),
    Key(
        "model.trainable_variables.filter_fn",
        "func",
        None,
        "fn(v) -> bool: whether gradient descent updates variable v.",
    ),
    Key(
        "model.trainable_variables.filter_regex",
        "str",
        "",
        "Update only variables whose name this regular expression matches somewhere.",
    ),
    Key(
        "model.weight_decay",
        "float",
        0.0,
        "Weight of the L2 loss, sum(v ** 2) / 2 over the decayed variables; adamw and lamb decay "
        "the weights directly instead.",
    ),
    Key(
        "model.weight_decay.filter_fn",
        "func",
        None,
        "fn(v) -> bool: whether variable v is decayed. Without a filter: trained variables with "
        "two or more dimensions (kernels, not biases and scales).",
    ),
    Key(
        "model.weight_decay.filter_regex",
        "str",
        "",
        "Decay only variables whose name this regular expression matches somewhere.",
    ),
    Key(
        "model.learning_rate_factor",
        "float",
        1.0,
        "Factor on the learning rate of the variables that its filters choose (all without one); "
        "0.1 on a pretrained part is common.",
    ),
    Key(
        "model.learning_rate_factor.filter_fn",
        "func",
        None,
        "fn(v) -> bool: whether the factor applies to variable v.",
    ),
    Key(
        "model.learning_rate_factor.filter_regex",
        "str",
        "",
        "The factor applies to variables whose name this regular expression matches somewhere.",
    ),
    Key(
        "model.clip_gradients",
        "bool",
        False,
        "Clip each averaged gradient to [minval, maxval], element by element.",
    ),
    Key("model.clip_gradients.minval", "float", -1.0, "Minimum gradient value."),
    Key("model.clip_gradients.maxval", "float", 1.0, "Maximum gradient value."),
    Key(
        "model.clip_gradients.global_norm",
        "float",
        0.0,
        "Scale all averaged gradients so that their joint norm is at most this (0: off).",
    ),
    Key(
        "model.gradient_accumulation_steps",
        "int",
        1,
        "Batches whose gradients are averaged into one step.",
        fixed=True,
    ),
    Key(
        "model.ema_decay",
        "float",
        0.0,
        "Decay of a moving average of the weights, used for validation, evaluation and export "
        "(0: off; 0.999 is common).",
        fixed=True,
    ),
)

OPTIMIZER = (
    Key(
        "model.optimizer.method",
        "str",
        "msgd",
        "Optimizer: msgd is momentum SGD.",
        choices=OPTIMIZERS,
        fixed=True,
    ),
    Key("model.optimizer.msgd.momentum", "float", 0.9, "Momentum of msgd."),
    Key("model.optimizer.msgd.use_nesterov", "bool", False, "Nesterov's momentum in msgd."),
    Key("model.optimizer.adam.beta1", "float", 0.9, "Decay of the mean, in adam."),
    Key("model.optimizer.adam.beta2", "float", 0.999, "Decay of the uncentred variance, in adam."),
    Key("model.optimizer.adam.epsilon", "float", 1e-8, "Added to the denominator, in adam."),
    Key("model.optimizer.rmsprop.decay", "float", 0.9, "Decay of the squared mean, in rmsprop."),
    Key("model.optimizer.rmsprop.momentum", "float", 0.0, "Momentum of rmsprop."),
    Key("model.optimizer.rmsprop.epsilon", "float", 1e-10, "Added under the root, in rmsprop."),
    Key("model.optimizer.adamw.beta1", "float", 0.9, "Decay of the mean, in adamw."),
    Key("model.optimizer.adamw.beta2", "float", 0.999, "Decay of the variance, in adamw."),
    Key("model.optimizer.adamw.epsilon", "float", 1e-8, "Added to the denominator, in adamw."),
    Key("model.optimizer.lamb.beta1", "float", 0.9, "Decay of the mean, in lamb."),
    Key("model.optimizer.lamb.beta2", "float", 0.999, "Decay of the variance, in lamb."),
    Key("model.optimizer.lamb.epsilon", "float", 1e-6, "Added to the denominator, in lamb."),
)

SCHEDULE = (
    Key(
        "model.lr_schedule.method",
        "str",
        "constant",
        "How the learning rate follows the step.",
        choices=SCHEDULES,
    ),
    Key(
        "model.lr_schedule.warmup_steps",
        "int",
        0,
        "Steps over which the rate rises linearly from 0 to what the schedule says (0: none).",
    ),
    Key(
        "model.lr_schedule.step.boundaries",
        "list(int)",
        [],
        "Completed steps after which the next value takes over.",
    ),
    Key(
        "model.lr_schedule.step.values",
        "list(float)",
        [],
        "Learning rates, one more than boundaries; the first is the starting rate.",
    ),
    Key("model.lr_schedule.constant.value", "float", 0.01, "The learning rate of the whole run."),
    Key("model.lr_schedule.exp.value", "float", 0.01, "Initial learning rate."),
    Key("model.lr_schedule.exp.decay_rate", "float", 0.95, "Factor of one decay."),
    Key("model.lr_schedule.exp.decay_steps", "float", 1000.0, "Steps to run before each decay."),
    Key(
        "model.lr_schedule.exp.staircase",
        "bool",
        True,
        "Decay in jumps every decay_steps; otherwise a little at every step.",
    ),
    Key("model.lr_schedule.cosine.value", "float", 0.01, "Initial learning rate."),
    Key("model.lr_schedule.cosine.end_value", "float", 0.0, "Rate at model.num_steps."),
    Key("model.lr_schedule.polynomial.value", "float", 0.01, "Initial learning rate."),
    Key("model.lr_schedule.polynomial.end_value", "float", 0.0, "Rate at model.num_steps."),
    Key("model.lr_schedule.polynomial.power", "float", 1.0, "Power of the decay; 1 is linear."),
    Key(
        "model.lr_schedule.custom.fn",
        "func",
        None,
        "fn(step) -> float tensor: the learning rate for an int64 tensor of completed steps.",
    ),
)

SECTIONS = {
    "Trainer": TRAINER,
    "Model": MODEL,
    "Optimizer": OPTIMIZER,
    "Learning rate schedule": SCHEDULE,
}
KEYS = {key.name: key for section in SECTIONS.values() for key in section}
