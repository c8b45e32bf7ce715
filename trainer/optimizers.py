"""Optimizers by name, from configuration."""

import re
from collections.abc import Iterable

import tensorflow as tf

from trainer import towers
from trainer.config import Config, UserError

v1 = tf.compat.v1

# These decay the weights directly; the others get an L2 loss.
DECOUPLED = ("adamw", "lamb")


def create(
    config: Config,
    learning_rate: tf.Tensor,
    decayed: Iterable[tf.Variable] = (),
    step: tf.Tensor | None = None,
):
    """Returns the optimizer named by `model.optimizer.method`.

    Args:
      config: a `Config`.
      learning_rate: float scalar tensor.
      decayed: variables whose weights adamw and lamb decay by `model.weight_decay`.
      step: int64 scalar tensor of completed updates, for `model.learning_rate_factor.from_step`.

    Returns:
      An object with the `apply_gradients` of `tf.compat.v1.train.Optimizer`.

    Raises:
      UserError: `model.learning_rate_factor` is 0.
    """
    factor = config["model.learning_rate_factor"]
    if factor <= 0:
        raise UserError(
            f"model.learning_rate_factor={factor} must be above 0; to freeze variables, exclude "
            "them by model.trainable_variables.filter_regex."
        )
    late = config["model.learning_rate_factor.from_step"]
    if factor == 1 and config["model.layer_decay"] == 1 and not late:
        return _create(config, learning_rate, decayed)
    warmup = max(config["model.lr_schedule.warmup_steps"], 1)
    # Step `late` uses 1 / warmup of the rate, like step 0 in the schedule.
    rise = tf.clip_by_value(tf.cast(step + 1 - late, tf.float32) / warmup, 0, 1) if late else 1.0
    return Rates(lambda rate: _create(config, rate * learning_rate, decayed), config, rise)


def _create(config, learning_rate, decayed):
    method = config["model.optimizer.method"]
    option = lambda name: config[f"model.optimizer.{method}.{name}"]  # noqa: E731
    if method == "sgd":
        return v1.train.GradientDescentOptimizer(learning_rate)
    if method == "msgd":
        return v1.train.MomentumOptimizer(
            learning_rate, option("momentum"), use_nesterov=option("use_nesterov")
        )
    if method == "rmsprop":
        return v1.train.RMSPropOptimizer(
            learning_rate, option("decay"), option("momentum"), option("epsilon")
        )
    betas = option("beta1"), option("beta2"), option("epsilon")
    if method == "adam":
        return v1.train.AdamOptimizer(learning_rate, *betas)
    return DecoupledAdam(
        learning_rate,
        *betas,
        weight_decay=config["model.weight_decay"],
        decayed=[v.name for v in decayed],
        layerwise=method == "lamb",
    )


class Rates:
    """One optimizer per learning rate given by `model.learning_rate_factor` and `layer_decay`.

    Scaling gradients would have no effect with Adam, which divides by their magnitude.

    Args:
      make: function, factor on the learning rate -> optimizer.
      config: a `Config`.
      rise: additional factor on the rates of the variables that `model.learning_rate_factor`
        chooses, a float or a scalar tensor.
    """

    def __init__(self, make, config, rise=1.0):
        self._make, self._config, self._rise = make, config, rise

    def apply_gradients(self, grads_and_vars, global_step):
        parts = {}
        factors = self._factors([v for _, v in grads_and_vars])
        for pair, factor in zip(grads_and_vars, factors, strict=True):
            parts.setdefault(factor, []).append(pair)
        # The full rate first: the order determines names of optimizer variables in checkpoints.
        order = sorted(parts, key=lambda part: (part != (1, False), -part[0], part[1]))
        updates = [
            self._make(factor * self._rise if rises else factor).apply_gradients(
                parts[factor, rises]
            )
            for factor, rises in order
        ]
        with tf.control_dependencies(updates):
            return global_step.assign_add(1).op

    def _factors(self, variables):
        factor, decay = (
            self._config[f"model.{k}"] for k in ("learning_rate_factor", "layer_decay")
        )
        chosen = set()
        rises = tf.is_tensor(self._rise)
        if factor != 1 or rises:
            prefix = "model.learning_rate_factor"
            chosen = {v.op.name for v in towers.select(variables, self._config, prefix)}
        heights = [0] * len(variables)
        if decay != 1:
            heights = layers_above([v.op.name for v in variables])
        return [
            ((factor if v.op.name in chosen else 1) * decay**height, rises and v.op.name in chosen)
            for v, height in zip(variables, heights, strict=True)
        ]


# Names of blocks: layers_3, transformer_block_2, blocks_05, stage_1_block_0, conv4_block2.
_BLOCK = re.compile(r"(?:stage|stack|layers?|blocks?|conv(?!\dd))_?(\d+)")


def layers_above(names: Iterable[str]) -> list[int]:
    """Number of blocks after each variable's block: 0 for the head, 1 for the last block, etc.

    Args:
      names: names of variables in the order of creation. Variables before the first block belong to
        the input (patches, positions), unnumbered ones after it to the head.

    Raises:
      UserError: no name contains a block number.
    """
    blocks = [tuple(map(int, _BLOCK.findall(name))) for name in names]
    order = {block: i for i, block in enumerate(sorted(set(blocks) - {()}))}
    if not order:
        raise UserError(
            "model.layer_decay: no trained variable is in a numbered block (layers_3, block5)."
        )
    first = next(i for i, block in enumerate(blocks) if block)
    return [
        len(order) - order[block] if block else (len(order) + 1) * (i < first)
        for i, block in enumerate(blocks)
    ]


class DecoupledAdam(v1.train.Optimizer):
    """Adam with weight decay outside the gradient.

    AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2, the decay scaled by the
    learning rate); with `layerwise`, LAMB (You et al. 2020, arXiv 1904.00962, algorithm 2): each
    variable's update is scaled by |v| / |update|, or by 1 if either is 0.
    """

    def __init__(
        self, learning_rate, beta1, beta2, epsilon, *, weight_decay, decayed, layerwise=False
    ):
        super().__init__(use_locking=False, name="lamb" if layerwise else "adamw")
        self._rate, self._beta1, self._beta2, self._epsilon = learning_rate, beta1, beta2, epsilon
        self._weight_decay, self._decayed, self._layerwise = weight_decay, set(decayed), layerwise

    def _create_slots(self, var_list):
        self._updates = self._create_non_slot_variable(0.0, "updates", var_list[0])
        for v in var_list:
            self._zeros_slot(v, "m", self._name)
            self._zeros_slot(v, "v", self._name)

    def _resource_apply_dense(self, grad, var):
        m, v = self.get_slot(var, "m"), self.get_slot(var, "v")
        t = self._updates + 1
        m_t = m.assign(self._beta1 * m + (1 - self._beta1) * grad)
        v_t = v.assign(self._beta2 * v + (1 - self._beta2) * tf.square(grad))
        mean = m_t / (1 - self._beta1**t)
        update = mean / (tf.sqrt(v_t / (1 - self._beta2**t)) + self._epsilon)
        if var.name in self._decayed:
            update += self._weight_decay * var
        if self._layerwise:
            norms = tf.norm(var), tf.norm(update)
            ratio = tf.math.divide_no_nan(*norms)
            update *= tf.where(ratio > 0, ratio, 1.0)
        return var.assign_sub(self._rate * update).op

    def _resource_apply_sparse(self, grad, var, indices):
        # Moments of rows without a gradient also decay, so the update must be dense.
        dense = tf.IndexedSlices(grad, indices, tf.shape(var, out_type=indices.dtype))
        return self._resource_apply_dense(tf.convert_to_tensor(dense), var)

    def _finish(self, update_ops, name_scope):
        with tf.control_dependencies(update_ops):
            return tf.group(*update_ops, self._updates.assign_add(1.0), name=name_scope)
