"""Converts names of published weights to names that KerasHub or `vision_tower` reads.

CLIP and SigLIP of OpenCLIP and timm are converted to Hugging Face's names; DINOv2 of timm too,
which KerasHub then converts. Only names and layouts are here; the networks are KerasHub's.
"""

import re

import numpy as np

# timm's and OpenCLIP's blocks: (their name, Hugging Face's name), tried in this order.
_BLOCK = (
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_CLIP = (
    (r"class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"conv1\.weight$", "vision_model.embeddings.patch_embedding.weight"),
    (r"ln_pre\.", "vision_model.pre_layrnorm."),
    (r"ln_post\.", "vision_model.post_layernorm."),
    (r"transformer\.resblocks\.(\d+)\.", r"vision_model.encoder.layers.\1."),
    *_BLOCK,
    (r"^proj$", "visual_projection.weight"),
)
_SIGLIP = (
    (r"^patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^pos_embed$", "vision_model.embeddings.position_embedding.weight"),
    (r"^blocks\.(\d+)\.", r"vision_model.encoder.layers.\1."),
    (r"^norm\.", "vision_model.post_layernorm."),
    (r"^attn_pool\.latent$", "vision_model.head.probe"),
    (r"^attn_pool\.(q|kv)\.", r"vision_model.head.attention.\1."),
    (r"^attn_pool\.proj\.", "vision_model.head.attention.out_proj."),
    (r"^attn_pool\.norm\.", "vision_model.head.layernorm."),
    (r"^attn_pool\.mlp\.", "vision_model.head.mlp."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.out_proj."),
)
_TEXT = (
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection\.", "text_model.head."),
    (r"^transformer\.resblocks\.(\d+)\.", r"text_model.encoder.layers.\1."),
    *_BLOCK,
)
_DINOV2 = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^reg_token$", "embeddings.register_tokens"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^blocks\.(\d+)\.", r"encoder.layer.\1."),
    (r"\.ls(\d)\.gamma$", r".layer_scale\1.lambda1"),
    (r"\.attn\.qkv\.", ".attention.attention."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".mlp.fc1."),
)


def unwrap(tensors):
    """The tensors, with prefixes such as `state_dict.` or `teacher.` removed from their names."""
    pattern = r"(?:state_dict|model|module|teacher|backbone)\."
    while tensors and all(re.match(pattern, name) for name in tensors):
        tensors = {re.sub(pattern, "", name, count=1): value for name, value in tensors.items()}
    return tensors


def of_open_clip(tensors):
    """Image tower of OpenCLIP's CLIP, or of its SigLIP over timm, in Hugging Face's names."""
    visual = {n.removeprefix("visual."): v for n, v in tensors.items() if n.startswith("visual.")}
    if any(name.startswith("trunk.") for name in visual):
        return of_timm_siglip({n.removeprefix("trunk."): v for n, v in visual.items()})
    found = _renamed(visual, _CLIP)
    if "visual_projection.weight" in found:
        found["visual_projection.weight"] = found["visual_projection.weight"].T
    return found


def text_of_open_clip(tensors):
    """Text tower of OpenCLIP's CLIP or SigLIP in Hugging Face's names."""
    inner = {n.removeprefix("text."): v for n, v in tensors.items() if n.startswith("text.")}
    outer = {n: v for n, v in tensors.items() if not n.startswith("visual.")}
    found = _renamed(inner or outer, _TEXT)
    if "text_projection" in found:  # a matrix in CLIP, a layer in SigLIP
        found["text_projection.weight"] = found.pop("text_projection").T
    return found


def of_timm_siglip(tensors):
    """timm's SigLIP image tower in Hugging Face's names."""
    found = _renamed({n: v for n, v in tensors.items() if not n.startswith("head.")}, _SIGLIP)
    for end in ("weight", "bias"):
        parts = [
            found.pop(f"vision_model.head.attention.{part}.{end}", None) for part in ("q", "kv")
        ]
        if all(part is not None for part in parts):
            found[f"vision_model.head.attention.in_proj_{end}"] = np.concatenate(parts)
    for name, value in list(found.items()):
        if ".self_attn.qkv." in name:
            del found[name]
            for part, piece in zip("qkv", np.split(value, 3), strict=True):
                found[name.replace(".qkv.", f".{part}_proj.")] = piece
    name = "vision_model.embeddings.position_embedding.weight"
    if name in found:
        found[name] = found[name][0]
    return found


def of_timm_dinov2(tensors):
    """timm's DINOv2 in Hugging Face's names."""
    found = _renamed({n: v for n, v in tensors.items() if not n.startswith("head.")}, _DINOV2)
    for name, value in list(found.items()):
        if re.search(r"\.attention\.attention\.(weight|bias)$", name):
            del found[name]
            start, end = name.rsplit(".", 1)
            for part, piece in zip(("query", "key", "value"), np.split(value, 3), strict=True):
                found[f"{start}.{part}.{end}"] = piece
    table, token = "embeddings.position_embeddings", "embeddings.cls_token"
    side = int(found[table].shape[1] ** 0.5) if table in found else 0
    if side and side * side == found[table].shape[1]:  # with registers, the class token has none
        found[table] = np.concatenate([np.zeros_like(found[token]), found[table]], 1)
    return found


def _renamed(tensors, rules):
    found = {}
    for name, value in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found


# ---------------------------------------------------------------------------- towers


def heads_of(width):
    """Number of attention heads of timm's SigLIP, which its files do not state: 64 dimensions per
    head, except in two sizes."""
    return {1152: 16, 1536: 16}.get(width, max(width // 64, 1))


def vision_tower(tensors, sizes, source):
    """The image tower of a CLIP or SigLIP in Hugging Face's names, as KerasHub's network.

    Args:
      tensors: {name: array}; text towers are ignored.
      sizes: {"num_attention_heads", "hidden_act", "layer_norm_eps", "image_size"} if known; all
        other sizes are taken from the tensors.
      source: name of the source in errors.

    Returns:
      (KerasHub's encoder with its weights, list of CLIP's layers from its tokens to a vector).

    Raises:
      ValueError: a tensor is missing, unknown, or of another shape.
    """
    from keras_hub import models

    tensors = {n: v for n, v in tensors.items() if re.match("vision_model|visual_projection", n)}
    prefix = "vision_model."
    siglip = f"{prefix}head.probe" in tensors
    given = _Tensors(tensors, source)
    kernel = given.take(f"{prefix}embeddings.patch_embedding.weight", 2, 3, 1, 0)
    table = given.take(f"{prefix}embeddings.position_embedding.weight")
    patch, width = kernel.shape[0], kernel.shape[-1]
    side = patch * int(len(table) ** 0.5)
    options = {
        "patch_size": patch,
        "image_shape": (side, side, 3),
        **_options(tensors, prefix, sizes, width, siglip),
    }
    encoder = (models.SigLIPVisionEncoder if siglip else models.CLIPVisionEncoder)(**options)
    given.put(encoder.embedding.patch_embedding.kernel, kernel)
    given.put(encoder.embedding.position_embedding.embeddings, table)
    if siglip:
        bias = given.take(f"{prefix}embeddings.patch_embedding.bias")
        given.put(encoder.embedding.patch_embedding.bias, bias)
    else:
        token = given.take(f"{prefix}embeddings.class_embedding")
        given.put(encoder.embedding.class_embedding, token)
        given.norm(encoder.pre_layer_norm, f"{prefix}pre_layrnorm")
    given.blocks(encoder, prefix, siglip)
    given.norm(encoder.post_layer_norm if siglip else encoder.layer_norm, f"{prefix}post_layernorm")
    if siglip:
        head, name = encoder.head, f"{prefix}head"
        given.put(head.probe, given.take(f"{name}.probe"))
        given.attention(head.attention, f"{name}.attention", f"{name}.attention.in_proj_weight")
        given.norm(head.layer_norm, f"{name}.layernorm")
        given.dense(head.mlp.fc1, f"{name}.mlp.fc1")
        given.dense(head.mlp.fc2, f"{name}.mlp.fc2")
    projection = given.left.pop("visual_projection.weight", None)
    given.end(f"{prefix}embeddings.position_ids")
    return encoder, [] if siglip else _head(projection)


def text_tower(tensors, sizes, source):
    """The text tower of a CLIP or SigLIP in Hugging Face's names, as a Keras model.

    Args:
      tensors, source: as for `vision_tower`; image towers are ignored.
      sizes: {"num_attention_heads", "hidden_act", "layer_norm_eps"} if known.

    Returns:
      Keras model, token ids int32 [N, L] -> [N, D], vectors to compare with the image tower's.

    Raises:
      ValueError: a tensor is missing, unknown, or of another shape.
    """
    import keras
    from keras_hub import models
    from keras_hub.src.models.clip.clip_layers import CLIPTextPooler

    tensors = {n: v for n, v in tensors.items() if re.match(r"text_(model|projection)\.", n)}
    prefix = "text_model."
    siglip = f"{prefix}head.weight" in tensors
    given = _Tensors(tensors, source)
    words = given.take(f"{prefix}embeddings.token_embedding.weight")
    table = given.take(f"{prefix}embeddings.position_embedding.weight")
    options = {
        "vocabulary_size": len(words),
        "embedding_dim": words.shape[1],
        "max_sequence_length": len(table),
        **_options(tensors, prefix, sizes, words.shape[1], siglip),
    }
    if siglip:
        options["projection_dim"] = len(tensors[f"{prefix}head.weight"])
    encoder = (models.SigLIPTextEncoder if siglip else models.CLIPTextEncoder)(**options)
    given.put(encoder.embedding.token_embedding.embeddings, words)
    positions = encoder.embedding.position_embedding
    given.put(positions.embeddings if siglip else positions.position_embeddings, table)
    given.blocks(encoder, prefix, siglip)
    norm = encoder.post_layer_norm if siglip else encoder.layer_norm
    given.norm(norm, f"{prefix}final_layer_norm")
    output = encoder.output
    if siglip:
        given.dense(encoder.head, f"{prefix}head")
    else:
        norm.epsilon = sizes.get("layer_norm_eps", 1e-5)  # KerasHub has 1e-6
        output = CLIPTextPooler(name="text_pooler")(output, encoder.inputs[0])
        projection = given.left.pop("text_projection.weight", None)
        if projection is not None:
            output = _projection(projection, "text_projection")(output)
    given.end(f"{prefix}embeddings.position_ids")
    return keras.Model(encoder.inputs[0], output)


class _Tensors:
    """Tensors by name; each is assigned to a variable of a network once."""

    def __init__(self, tensors, source):
        self.left, self.source = dict(tensors), source

    def take(self, name, *axes):
        if name not in self.left:
            raise ValueError(
                f"{self.source}: the tensor {name} is missing: the file is damaged, or of another "
                "network than config.json"
            )
        value = self.left.pop(name)
        return value.transpose(axes) if axes else value

    def put(self, variable, value):
        if tuple(variable.shape) != np.shape(value):
            shapes = f"{variable.shape}, not {value.shape}"
            raise ValueError(f"{self.source}: {variable.path} is {shapes}")
        variable.assign(value)

    def norm(self, layer, name):
        self.put(layer.gamma, self.take(f"{name}.weight"))
        self.put(layer.beta, self.take(f"{name}.bias"))

    def dense(self, layer, name):
        self.put(layer.kernel, self.take(f"{name}.weight", 1, 0))
        self.put(layer.bias, self.take(f"{name}.bias"))

    def attention(self, layer, name, packed):
        parts = {"q": layer.query_dense, "k": layer.key_dense, "v": layer.value_dense}
        if packed in self.left:
            for end in ("weight", "bias"):
                together = self.take(f"{name}.in_proj_{end}")
                for part, piece in zip("qkv", np.split(together, 3), strict=True):
                    self.left[f"{name}.{part}_proj.{end}"] = piece
        for part, inner in parts.items():
            value = self.take(f"{name}.{part}_proj.weight", 1, 0)
            self.put(inner.kernel, value.reshape(inner.kernel.shape))
            self.put(inner.bias, self.take(f"{name}.{part}_proj.bias").reshape(inner.bias.shape))
        outer = layer.output_dense
        value = self.take(f"{name}.out_proj.weight", 1, 0)
        self.put(outer.kernel, value.reshape(outer.kernel.shape))
        self.put(outer.bias, self.take(f"{name}.out_proj.bias"))

    def blocks(self, encoder, prefix, siglip):
        for i, block in enumerate(encoder.encoder_layers):
            name = f"{prefix}encoder.layers.{i}"
            own = (block.self_attn, block.layer_norm1, block.layer_norm2, block.mlp.fc1,
                   block.mlp.fc2) if siglip else (
                block.attention, block.layer_norm_1, block.layer_norm_2, block.dense_1,
                block.dense_2,
            )  # fmt: skip
            self.attention(own[0], f"{name}.self_attn", f"{name}.self_attn.in_proj_weight")
            self.norm(own[1], f"{name}.layer_norm1")
            self.norm(own[2], f"{name}.layer_norm2")
            self.dense(own[3], f"{name}.mlp.fc1")
            self.dense(own[4], f"{name}.mlp.fc2")

    def end(self, *without_use):
        unknown = [name for name in self.left if name not in without_use]
        if unknown:
            raise ValueError(f"{self.source}: the tensor {unknown[0]} is unknown")


def _options(tensors, prefix, sizes, width, siglip):
    """The common arguments of KerasHub's encoders of images and texts."""
    layers = {int(m[1]) for n in tensors if (m := re.match(rf"{prefix}encoder\.layers\.(\d+)", n))}
    found = {
        "hidden_dim": width,
        "num_layers": len(layers),
        "num_heads": sizes.get("num_attention_heads") or heads_of(width),
        "intermediate_dim": len(tensors.get(f"{prefix}encoder.layers.0.mlp.fc1.weight", [0])),
        "intermediate_activation": _activation(sizes["hidden_act"], siglip),
    }
    if siglip:
        found["layer_norm_epsilon"] = sizes.get("layer_norm_eps", 1e-6)
    return found


def _head(projection):
    """CLIP's layers from tokens to its vector: the class token, then a matrix [F, D] if any."""
    from keras_hub.src.models.clip.clip_layers import CLIPVisionPooler

    found = [CLIPVisionPooler(name="vision_pooler")]
    if projection is not None:
        found.append(_projection(projection, "vision_projection"))
    return found


def _projection(matrix, name):
    """A dense layer without a bias, from a matrix [D, F]."""
    import keras

    layer = keras.layers.Dense(len(matrix), use_bias=False, name=name)
    layer.build((None, matrix.shape[1]))
    layer.kernel.assign(matrix.T)
    return layer


def _activation(name, siglip):
    """KerasHub's name of an activation; PyTorch's and Keras's gelu is the exact one."""
    known = {"gelu": "gelu"}
    known |= {"gelu_pytorch_tanh": "gelu_approximate"} if siglip else {"quick_gelu": "quick_gelu"}
    if name not in known:
        raise ValueError(f"hidden_act {name!r} is not one of {', '.join(known)}")
    return known[name]
