"""Names of published weights that KerasHub does not read, as names that it or `vision_tower` reads.

CLIP and SigLIP of OpenCLIP and timm become those of Hugging Face; DINOv2 of timm becomes that of
Hugging Face, which KerasHub converts. Only names and layouts are here; the networks are KerasHub's.
"""

import re

import numpy as np

# timm's and OpenCLIP's blocks: (theirs, Hugging Face's), tried in this order.
_CLIP = (
    (r"class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"conv1\.weight$", "vision_model.embeddings.patch_embedding.weight"),
    (r"ln_pre\.", "vision_model.pre_layrnorm."),
    (r"ln_post\.", "vision_model.post_layernorm."),
    (r"transformer\.resblocks\.(\d+)\.", r"vision_model.encoder.layers.\1."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
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
    """The tensors without the names of what wraps a network, as `state_dict.` or `teacher.`."""
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


# ---------------------------------------------------------------------------- vision towers


def heads_of(width):
    """Attention heads of timm's SigLIP, which its files do not say: of 64, but in two sizes."""
    return {1152: 16, 1536: 16}.get(width, max(width // 64, 1))


def vision_tower(tensors, sizes, source):
    """The image tower of a CLIP or SigLIP in Hugging Face's names, as KerasHub's network.

    Args:
      tensors: {name: array}; text towers are ignored.
      sizes: {"num_attention_heads", "hidden_act", "layer_norm_eps", "image_size"} where they are
        known; all other sizes are those of the tensors.
      source: its name in errors.

    Returns:
      (KerasHub's encoder, with its weights; CLIP's layers from its tokens to a vector, a list).

    Raises:
      ValueError: a tensor is missing, unknown, or of another shape.
    """
    from keras_hub import models

    tensors = {n: v for n, v in tensors.items() if re.match("vision_model|visual_projection", n)}
    prefix = "vision_model."
    siglip = f"{prefix}head.probe" in tensors
    left = dict(tensors)

    def take(name, *axes):
        if name not in left:
            raise ValueError(f"{source}: the tensor {name} is missing")
        value = left.pop(name)
        return value.transpose(axes) if axes else value

    kernel = take(f"{prefix}embeddings.patch_embedding.weight", 2, 3, 1, 0)
    table = take(f"{prefix}embeddings.position_embedding.weight")
    patch, width = kernel.shape[0], kernel.shape[-1]
    layers = {int(m[1]) for n in tensors if (m := re.match(rf"{prefix}encoder\.layers\.(\d+)", n))}
    side = patch * int(len(table) ** 0.5)
    heads = sizes.get("num_attention_heads") or heads_of(width)
    options = {
        "patch_size": patch,
        "hidden_dim": width,
        "num_layers": len(layers),
        "num_heads": heads,
        "intermediate_dim": len(tensors.get(f"{prefix}encoder.layers.0.mlp.fc1.weight", ())),
        "intermediate_activation": _activation(sizes["hidden_act"], siglip),
        "image_shape": (side, side, 3),
    }
    if siglip:
        options["layer_norm_epsilon"] = sizes.get("layer_norm_eps", 1e-6)
    encoder = (models.SigLIPVisionEncoder if siglip else models.CLIPVisionEncoder)(**options)

    def put(variable, value):
        if tuple(variable.shape) != np.shape(value):
            raise ValueError(f"{source}: {variable.path} is {variable.shape}, not {value.shape}")
        variable.assign(value)

    def norm(layer, name):
        put(layer.gamma, take(f"{name}.weight"))
        put(layer.beta, take(f"{name}.bias"))

    def dense(layer, name):
        put(layer.kernel, take(f"{name}.weight", 1, 0))
        put(layer.bias, take(f"{name}.bias"))

    def attention(layer, name, packed):
        parts = {"q": layer.query_dense, "k": layer.key_dense, "v": layer.value_dense}
        if packed in left:
            for end in ("weight", "bias"):
                together = take(f"{name}.in_proj_{end}")
                for part, piece in zip("qkv", np.split(together, 3), strict=True):
                    left[f"{name}.{part}_proj.{end}"] = piece
        for part, inner in parts.items():
            value = take(f"{name}.{part}_proj.weight", 1, 0)
            put(inner.kernel, value.reshape(inner.kernel.shape))
            put(inner.bias, take(f"{name}.{part}_proj.bias").reshape(inner.bias.shape))
        outer = layer.output_dense
        put(outer.kernel, take(f"{name}.out_proj.weight", 1, 0).reshape(outer.kernel.shape))
        put(outer.bias, take(f"{name}.out_proj.bias"))

    put(encoder.embedding.patch_embedding.kernel, kernel)
    put(encoder.embedding.position_embedding.embeddings, table)
    if siglip:
        put(
            encoder.embedding.patch_embedding.bias, take(f"{prefix}embeddings.patch_embedding.bias")
        )
    else:
        put(encoder.embedding.class_embedding, take(f"{prefix}embeddings.class_embedding"))
        norm(encoder.pre_layer_norm, f"{prefix}pre_layrnorm")
    for i, block in enumerate(encoder.encoder_layers):
        name = f"{prefix}encoder.layers.{i}"
        own = (block.self_attn, block.layer_norm1, block.layer_norm2) if siglip else (
            block.attention, block.layer_norm_1, block.layer_norm_2
        )  # fmt: skip
        attention(own[0], f"{name}.self_attn", f"{name}.self_attn.in_proj_weight")
        norm(own[1], f"{name}.layer_norm1")
        norm(own[2], f"{name}.layer_norm2")
        first, second = (block.mlp.fc1, block.mlp.fc2) if siglip else (block.dense_1, block.dense_2)
        dense(first, f"{name}.mlp.fc1")
        dense(second, f"{name}.mlp.fc2")
    norm(encoder.post_layer_norm if siglip else encoder.layer_norm, f"{prefix}post_layernorm")
    if siglip:
        head, name = encoder.head, f"{prefix}head"
        put(head.probe, take(f"{name}.probe"))
        attention(head.attention, f"{name}.attention", f"{name}.attention.in_proj_weight")
        norm(head.layer_norm, f"{name}.layernorm")
        dense(head.mlp.fc1, f"{name}.mlp.fc1")
        dense(head.mlp.fc2, f"{name}.mlp.fc2")
    projection = left.pop("visual_projection.weight", None)
    left.pop(f"{prefix}embeddings.position_ids", None)
    if left:
        raise ValueError(f"{source}: the tensor {next(iter(left))} is unknown")
    return encoder, [] if siglip else _head(projection)


def _head(projection):
    """CLIP's layers from tokens to its vector: the class token, then a matrix [F, D] if any."""
    import keras
    from keras_hub.src.models.clip.clip_layers import CLIPVisionPooler

    found = [CLIPVisionPooler(name="vision_pooler")]
    if projection is not None:
        found.append(keras.layers.Dense(len(projection), use_bias=False, name="vision_projection"))
        found[1].build((None, projection.shape[1]))
        found[1].kernel.assign(projection.T)
    return found


def _activation(name, siglip):
    """KerasHub's name of an activation; PyTorch's and Keras's gelu is the exact one."""
    known = {"gelu": "gelu"}
    known |= {"gelu_pytorch_tanh": "gelu_approximate"} if siglip else {"quick_gelu": "quick_gelu"}
    if name not in known:
        raise ValueError(f"the activation {name!r} is none of {', '.join(known)}")
    return known[name]
