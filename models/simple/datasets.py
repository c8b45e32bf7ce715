"""Where the pictures come from: typeface glyphs, or the CSV that `dataset.manifest` names."""

from metriclearn import augment
from metriclearn.datasets import glyphs, manifest, pipeline, queries_and_catalogue
from metriclearn.samplers import pk_sampler
from models.simple.config import config
from trainer.config import seed_of


def channels():
    """Grey glyphs, or colour photos."""
    return 3 if config["dataset.manifest"] else 1


def datasets(start_step=0):
    """Returns the datasets by name; training batches are a pure function of (seed, step)."""
    path, seed = config["dataset.manifest"], seed_of(config["trainer.random_seed"])
    table = manifest.load(path, columns=config["dataset.columns"]) if path else glyphs.load()
    train, images = table.where(split="train"), config["dataset.images_per_product"]
    products = config["model.batch_size"] // images
    sample = pk_sampler(train.labels, products=products, images=images, seed=seed)
    picture = {"image_size": config["model.image_size"], "channels": channels()}
    picture["max_pixels"] = config["dataset.max_pixels"]
    picture["crop"] = augment.box_window() if table.boxes is not None else None

    def every(rows):
        return pipeline.eval_batches(rows, batch_size=config["model.batch_size"], **picture)

    queries, catalogue = queries_and_catalogue(table, split="test")

    disturb = augment.compose(augment.random_crop(0.8), augment.random_noise())
    training = {"start_step": start_step, "seed": seed, **picture}
    training["augment"] = disturb if config["dataset.augment"] else None
    return {
        "trn": pipeline.train_batches(train, sample, **training),
        "vld": every(table.where(split="val")),
        "retrieval_query": every(queries),
        "retrieval_index": every(catalogue),
    }
