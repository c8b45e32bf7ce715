"""The settings; each is a flag: `--model.num_steps=2000`."""

from trainer.config import Config

config = Config(
    {
        "trainer.experiment_name": "exp-simple",
        "trainer.evaluation_interval": 400,
        "trainer.best_metric": "recall@1",
        "model.batch_size": 128,
        "model.num_steps": 1200,
        "model.optimizer.method": "adam",
        # Near 0, Adam would turn rounding errors into full steps, and towers would differ.
        "model.optimizer.adam.epsilon": 1e-4,
        "model.lr_schedule.warmup_steps": 100,
        "model.lr_schedule.method": "cosine",
        "model.lr_schedule.cosine.value": 2e-3,
    }
)
config.declare(
    "model.image_size",
    32,
    "Height and width of the resized images, in pixels.",
    within="[1, inf)",
)
config.declare(
    "model.filters",
    [32, 64, 128],
    "Channels of each convolution; each convolution halves the size.",
    within="[1, inf)",
)
config.declare("model.embedding_size", 64, "Dimensions of the embedding.", within="[1, inf)")
config.declare("model.dropout", 0.0, "Fraction of features to drop in training.", within="[0, 1)")
config.declare(
    "model.margin",
    0.2,
    "Margin of the triplet loss: how much nearer the positive must be than the negative.",
    within="[0, inf)",
)
config.declare(
    "model.miner",
    "batch_all",
    "Miner of the triplets.",
    choices=("batch_all", "batch_hard"),
)
config.declare(
    "dataset.manifest", "", "CSV of product images; empty: glyphs of typefaces.", path=True
)
config.declare(
    "dataset.columns", "", "Names of the manifest's columns, if they differ: path=file,label=sku."
)
config.declare(
    "dataset.max_pixels",
    100_000_000,
    "Images with more pixels than this are not decoded and count as unreadable.",
    within="[1, inf)",
)
config.declare("dataset.augment", False, "Crop and augment training images at random.")
config.declare(
    "dataset.images_per_product",
    4,
    "Images of each product in a training batch.",
    within="[1, inf)",
)
