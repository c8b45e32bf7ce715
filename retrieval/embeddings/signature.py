"""SavedModels of any origin as embedders: what their signature takes and gives."""


def embedder(folder, pixel_range=(0, 255)):
    """Embeds with a SavedModel's `serving_default` signature.

    The TF1 loader reads SavedModels of both generations, and can feed them a tensor of this graph.
    """

    def embed(session, batch):
        import tensorflow as tf

        given, wanted = _signature(folder)
        image, (low, high) = batch["image"], pixel_range
        if tuple(pixel_range) != (0, 255):
            image = tf.cast(image, tf.float32) * ((high - low) / 255) + low
        image = tf.cast(image, tf.dtypes.as_dtype(given.dtype))
        loader = tf.compat.v1.saved_model
        loader.load(session, [tf.saved_model.SERVING], folder, input_map={given.name: image})
        return session.graph.get_tensor_by_name(wanted.name)

    return embed


def _signature(folder):
    """The one input and the embeddings of a SavedModel's signature, as TensorInfo."""
    import tensorflow as tf

    loader = tf.compat.v1.saved_model
    try:
        # The signature must be known before the graph is imported with its input replaced.
        with tf.Graph().as_default(), tf.compat.v1.Session() as other:
            meta = loader.load(other, [tf.saved_model.SERVING], folder)
    except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--saved_model={folder}: cannot be loaded: {reason}") from None
    if "serving_default" not in meta.signature_def:
        known = ", ".join(meta.signature_def) or "none"
        raise ValueError(f"--saved_model={folder}: has no signature serving_default, but {known}")
    signature = meta.signature_def["serving_default"]
    if len(signature.inputs) != 1:
        names = ", ".join(signature.inputs) or "nothing"
        raise ValueError(f"--saved_model={folder}: takes {names}; one batch of pictures expected")
    outputs = signature.outputs
    if "embeddings" not in outputs and len(outputs) != 1:
        raise ValueError(f"--saved_model={folder}: gives {', '.join(outputs)} but no embeddings")
    (given,) = signature.inputs.values()
    return given, outputs["embeddings"] if "embeddings" in outputs else next(iter(outputs.values()))


def input_size(folder, image_size=None):
    """((height, width), channels) of the pictures that a SavedModel takes."""
    shape = _signature(folder)[0].tensor_shape
    sides = [None if shape.unknown_rank else side.size for side in shape.dim]
    if not shape.unknown_rank and len(sides) != 4:
        raise ValueError(f"--saved_model={folder}: takes {sides}, not pictures [B, H, W, C]")
    height, width, channels = [n if n > 0 else None for n in sides[1:]] or (None,) * 3
    wanted = image_size or (height, width)
    if None in wanted:
        raise ValueError(f"--saved_model={folder}: takes any size; say which: --image_size=224")
    if (height or wanted[0], width or wanted[1]) != tuple(wanted):
        raise ValueError(
            f"--image_size={wanted[0]},{wanted[1]}: {folder} takes {height} x {width} only"
        )
    return tuple(wanted), channels or 3
