"""The network, its loss and its validation figures."""

import functools
import inspect
import json

import numpy as np
import tensorflow as tf

import metriclearn
from metriclearn import LOSSES, MINERS, PROXY_LOSSES
from models.backbones import color
from models.ranker.config import config
from models.ranker.datasets import (
    color_weight,
    head_starts_as,
    image_dimensions,
    load_backbone,
    start_of_head,
)
from models.ranker.tables import training_tables
from retrieval.metrics import recall_at_k
from trainer.config import UserError, did_you_mean, seed_of
from trainer.layers import ModelDict, dense

v1 = tf.compat.v1


def build(inputs=None, train_phase=False):
    """Builds one tower: `image`, uint8 [B, H, W, 3] -> `embeddings`, [B, D] of length 1.

    A batch of cached `features`, [B, F + C] with the colors, is passed directly to the head. The
    backbone's variables are also made, so that the checkpoint contains the whole network.
    """
    if inputs is None:
        names = config["actions.export.inputs"]
        if len(names) != 1:
            raise UserError(f"actions.export.inputs={','.join(names)}: there is one input, images.")
        inputs = {"image": v1.placeholder(tf.uint8, [None, *image_dimensions()], names[0])}
    model = ModelDict(train_phase=train_phase)
    backbone = load_backbone(config["model.hub_address"])
    mode, cached = config["model.batch_norm"], "features" in inputs
    frozen = bool(backbone.fingerprint) if mode == "auto" else mode == "frozen"
    images = tf.zeros([1, *image_dimensions()], tf.uint8) if cached else inputs["image"]
    try:
        features = backbone.apply(images, train_phase and not cached, frozen)
    except ValueError as error:
        raise UserError(f"model.hub_address: {error}") from None
    colored = color_weight() != 0
    if cached:
        joined = inputs["features"]
        model.features = joined[:, : int(features.shape[1])]
    else:
        model.features = features
        joined = tf.concat([features, color.histogram(images)], 1) if colored else features
    if cached:
        trainable = v1.get_collection_ref(v1.GraphKeys.TRAINABLE_VARIABLES)
        of_backbone = {v.op.name for v in backbone.variables()}
        trainable[:] = [v for v in trainable if v.op.name not in of_backbone]
    untrained, projection = _head(joined, int(features.shape[1]), train_phase)
    by = config["evaluation.precision@k.feature_key"]
    if not train_phase and by != "embeddings":
        projection = model.features if by == "features" else untrained
    model.embeddings = tf.nn.l2_normalize(projection, axis=1)
    if "label" in inputs:
        model.labels = inputs["label"]
    return model


def _head(joined, features, train_phase):
    """The head's input and output: [B, F + C] -> ([B, F + C], [B, D]).

    The initial head is computed from the training images and is part of the checkpoint. A restored
    model needs neither the images nor this computation.
    """
    dimensions, size = config["model.reduced_dimension"], int(joined.shape[1])
    if head_starts_as() == "random":
        parts = [joined[:, :features], (color_weight() or 0.0) * joined[:, features:]]
        joined = tf.concat(parts, 1)
        return joined, dense(joined, dimensions, "embedding") if dimensions else joined
    fitted = train_phase and not config["model.weights_load_path"]
    start = start_of_head(features, dimensions or size) if fitted else None

    def constant(name, shape, value):
        initial = v1.constant_initializer(value) if fitted else v1.zeros_initializer()
        return v1.get_variable(name, shape, initializer=initial, trainable=False)

    with v1.variable_scope("head"):
        joined -= constant("mean", [size], start and start.mean)
        weight = constant("color_weight", [], start and start.weight)
    parts = [joined[:, :features], joined[:, features:]]
    of_features, of_colors = (tf.nn.l2_normalize(part, axis=1) for part in parts)
    joined = tf.concat([of_features, weight * of_colors], 1)
    if not dimensions:
        return joined, joined
    initial = v1.constant_initializer(start.kernel) if fitted else None
    return joined, dense(joined, dimensions, "embedding", use_bias=False, initializer=initial)


def frozen_features(inputs, outputs):
    """Features [B, F] of the backbone before training, a baseline; None if it has no weights."""
    backbone = load_backbone(config["model.hub_address"])
    if not backbone.fingerprint:
        return None
    if config["model.cached_features"]:  # training did not change the backbone
        return outputs.features
    with v1.variable_scope("frozen"):
        return backbone.apply(inputs["image"])


def texts():
    """The backbone's text tower, None if it has none.

    Raises:
      UserError: embeddings cannot be compared with texts, or there is no vocabulary.
    """
    tower = load_backbone(config["model.hub_address"]).texts
    if tower is None:
        return None
    mended = []
    if config["evaluation.precision@k.feature_key"] != "features":
        if config["model.reduced_dimension"]:
            mended.append("--model.reduced_dimension=0")
        if head_starts_as() != "random":
            mended.append("--model.head_init=random")
        if color_weight() != 0:
            mended.append("--model.color=0")
    if config["model.pooling"] != "auto":
        mended.append("--model.pooling=auto")
    if mended:
        raise UserError(
            "the model's head was trained on images and works only for images; to search by text, "
            f"train with {' '.join(mended)}"
        )
    tower.check()
    return tower


def sources():
    """The entry about the backbone's weights in a run's provenance, a dict."""
    backbone = load_backbone(config["model.hub_address"])
    return {
        "backbone": backbone.source or config["model.hub_address"],
        "sha256": backbone.fingerprint,
        "preprocessing": backbone.preprocessing,
    }


# ---------------------------------------------------------------------------- loss


def loss(outputs):
    """The loss over the whole batch, with the embeddings of all towers.

    Validation has products without a proxy, and batches without ordered pairs. There a proxy loss
    is replaced by the triplet loss, and the miner given_positive by batch_hard. Validation does not
    use the cross-batch memory.
    """
    batch = outputs.labels, outputs.embeddings
    try:
        value = _loss(batch, outputs.train_phase)
        hardest = metriclearn.mine_batch_hard(*batch, distance=config["model.distance"])
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        given = ",".join(config["model.loss.options"] + config["model.miner.options"])
        given = f" with {given}" if given else ""
        raise UserError(f"model.loss={config['model.loss']}{given}: {error}") from None
    if value.shape.rank:
        raise UserError("model.loss.options: reduction=none gives no scalar to minimize.")
    figures = metriclearn.triplet_statistics(
        *batch, hardest, margin=config["model.margin"], distance=config["model.distance"]
    )
    figures |= metriclearn.embedding_statistics(outputs.embeddings)
    for name, figure in figures.items():
        v1.summary.scalar(f"mining/{name}", figure)
    return {
        "loss": value,
        "triplets": tf.stack(hardest, axis=1),
        "hardest_triplet": metriclearn.hardest_triplet(outputs.embeddings, hardest),
    }


def _loss(batch, train_phase):
    name, size = config["model.loss"], config["model.memory_size"]
    options = read_options("model.loss.options", {**LOSSES, **PROXY_LOSSES}[name])
    if name in PROXY_LOSSES:
        if train_phase:
            return PROXY_LOSSES[name](*batch, _proxies(int(batch[1].shape[1])), **options)
        name, options = "triplet", {}
    if name in ("triplet", "margin"):
        options = {"miner": _miner(name, train_phase)} | options
    if name == "triplet":
        options = {"margin": config["model.margin"], "distance": config["model.distance"]} | options
    function = functools.partial(LOSSES[name], **options)
    value = function(*batch)
    if size and train_phase:
        if "references" not in inspect.signature(LOSSES[name]).parameters:
            raise UserError(f"model.memory_size: the loss {name!r} does not use a memory.")
        with v1.variable_scope(v1.get_variable_scope(), reuse=v1.AUTO_REUSE):
            memory = metriclearn.cross_batch_memory(size, int(batch[1].shape[1]))
        remembered = function(*batch, references=metriclearn.enqueue(memory, *batch))
        value += tf.where(_step() >= config["model.memory_start"], remembered, 0.0)
    return value


def _proxies(dimension):
    """One vector per training product, [C, D]."""
    count = len(np.unique(training_tables()[0].products))
    initializer = v1.random_normal_initializer(seed=seed_of(config["trainer.random_seed"]))
    with v1.variable_scope(v1.get_variable_scope(), reuse=v1.AUTO_REUSE):
        return v1.get_variable("proxies", [count, dimension], initializer=initializer)


def _miner(loss_name, train_phase):
    """`model.miner`: its name, or a function if it has options."""
    name = config["model.miner"]
    options = read_options("model.miner.options", MINERS[name])
    if name == "given_positive" and not train_phase:  # validation batches are not pairs
        name, options = "batch_hard", {}
    if name == "given_positive":
        if config["dataset.sampler"] != "pairs":
            raise UserError("model.miner=given_positive needs dataset.sampler=pairs.")
        if config["model.memory_size"]:
            raise UserError("model.miner=given_positive does not use a memory.")
        across = config["dataset.domains"] and not config["dataset.intradomain_pairs"]
        options = {"negatives": "cross" if across else "both"} | options
    elif "seed" in inspect.signature(MINERS[name]).parameters:
        seed = seed_of(config["trainer.random_seed"])
        options = {"seed": tf.stack([tf.constant(seed, tf.int64), _step()])} | options
    if not options and loss_name == "triplet":
        return name
    return functools.partial(MINERS[name], **options)


def _step():
    """Completed updates, int64 scalar; 0 outside a training graph."""
    step = v1.train.get_global_step()
    return tf.zeros([], tf.int64) if step is None else tf.identity(step)


def read_options(key, function):
    """Keyword arguments of a function from a key's `name=value` texts.

    Values are parsed as JSON (0.1, true, null, [1,2]), otherwise as text.

    Raises:
      UserError: a text is not `name=value`, or the function has no such argument.
    """
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "references"]
    options = {}
    for text in config[key]:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise UserError(
                f"{key}: {text!r} is not name=value; names: {', '.join(known) or 'none'}."
                + did_you_mean(name, known)
            )
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


# ---------------------------------------------------------------------------- validation


def metrics(outputs):
    """Recall on the held-out images: in their catalogue or, without one, among the others."""
    embeddings, labels, shown = (outputs[key] for key in ("embeddings", "labels", "catalogue"))
    ks = (1, 5)
    if shown.any():
        rates = recall_at_k(
            embeddings[~shown], labels[~shown], embeddings[shown], labels[shown], ks=ks
        )
    else:
        rates = recall_at_k(embeddings, labels, ks=ks)
    return {f"recall@{k}": rates[k] for k in ks}
