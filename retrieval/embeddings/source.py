"""Flags of `embed` and `build` for the images to embed and the model."""

from trainer import commandline, quiet
from trainer.config import UserError

RENAMED = {"pixel_range": "--input_range: 0,1 or -1,1 or 0,255 or imagenet or caffe"}


def define_flags(values):
    """Defines the flags for the images to embed and the model."""
    text, path, number, many, choice = commandline.definers(
        values, "string", "path", "integer", "list", "enum"
    )
    text("model", None, "Model module, such as models.simple.", short_name="m")
    path("folder", "", "Embed the images in this folder, or this one image.")
    path("manifest", "", "Embed the images of this CSV of path,label[,category,...].")
    text("where", "", "Rows to embed: column=value|value,column=value; all conditions must hold.")
    text("columns", "", "Names of the manifest's columns, if they differ: path=file,label=sku.")
    path("checkpoint", None, "best, last, or a path; default: the best on validation if the run "
         "keeps it, otherwise the last.")  # fmt: skip
    path("saved_model", None, "Folder of a SavedModel that embeds, instead of --model.")
    many("image_size", [], "Height,width or one side; default: that of the SavedModel.")
    text("input_range", "", "Pixel range of a SavedModel that takes floats and does not state it: "
         "0,1 or -1,1 or 0,255 or imagenet or caffe.")  # fmt: skip
    choice("on_bad_image", "error", ["error", "skip"], "How to handle unreadable images.")
    number("batch_size", 64, "Images per batch, for a folder or manifest.", lower_bound=1)
    number("threads", 0, "TensorFlow's threads (0: all cores).", lower_bound=0)


def locate(options, model, given):
    """Configures the model like its experiment; returns the checkpoint, None with --saved_model.

    Raises:
      UserError: it is unclear which model embeds the images, or there is no checkpoint.
    """
    if options.checkpoint and options.saved_model:
        raise UserError("--checkpoint and --saved_model: give one of them")
    listed = options.folder or options.manifest
    if not options.manifest:
        commandline.refuse_idle(options, ["columns"], "it names columns of --manifest")
    if "dataset" in options and listed:
        commandline.refuse_idle(options, ["dataset"], "--folder or --manifest is embedded")
    if "dataset" in options and not listed and not options.all:
        names, why = ("where", "on_bad_image", "batch_size"), "the model's own dataset is embedded"
        commandline.refuse_idle(options, names, f"{why}; give --folder, --manifest or --all")
    if model is None and not (options.saved_model and (options.folder or options.manifest)):
        raise UserError(
            "Give the model that embeds images: --model=NAME, or --saved_model=DIR with --folder "
            "or --manifest."
        )
    for name in ("image_size", "input_range"):
        if not options.saved_model and options[name].present:
            raise UserError(f"--{name}: needs --saved_model; for a model it is known")
    quiet.import_tensorflow()
    from trainer import experiment

    if not options.saved_model:
        _, checkpoint = experiment.locate(model, given, options.checkpoint)
        print(experiment.describe(checkpoint), flush=True)
        return checkpoint
    if model is not None:
        experiment.restore_config(model, given)
    return None


def opened(options, model, checkpoint, spec=None):
    """The `Embedder` that the flags name."""
    from retrieval.embeddings.embedder import Embedder

    if checkpoint:
        return Embedder.of_experiment(model, checkpoint, spec=spec, threads=options.threads)
    return Embedder.of_saved_model(
        options.saved_model,
        image_size=_size(options.image_size),
        input_range=options.input_range,
        threads=options.threads,
    )


def catalogue_of(model, where=""):
    """The ProductTable of the whole catalogue of a model's data set; None without a table().

    Raises:
      ValueError: see `metriclearn.datasets.select_where`.
    """
    from retrieval.embeddings import images

    if not hasattr(model, "table"):
        return None
    return images.catalogue(model.table(), where)


def _size(values):
    """(height, width) of --image_size, one or two numbers; None if it was not given."""
    try:
        sides = [int(value) for value in values]
    except ValueError:
        sides = [0]
    if values and (len(sides) > 2 or min(sides) < 1):
        raise ValueError(f"--image_size={','.join(values)}: takes one or two whole numbers")
    return (sides[0], sides[-1]) if values else None


def print_skipped(manifest):
    """Prints the names of images that could not be read."""
    skipped = [line for shard in manifest["shards"] for line in shard.get("skipped", ())]
    for line in skipped[:5]:
        print(f"skipped: {line}")
    if skipped:
        print(f"{len(skipped)} images skipped; manifest.json lists them")
