"""Every value of the ranker, each a flag: `--model.hub_address=resnet18`."""

from metriclearn import LOSSES, MINERS, PROXY_LOSSES
from metriclearn.datasets import READERS
from models.backbones.pooling import METHODS
from trainer.config import Config

# How the first version of this model spelled its data sets.
ALIASES = {"Stanford_Online_Products": "sop", "DeepFashion": "deepfashion_c2s"}

config = Config(
    {
        "trainer.experiment_name": "exp-ranker",
        "trainer.evaluation_interval": 25,
        "trainer.early_stopping_patience": 6,
        "trainer.best_metric": "recall@1",
        "model.batch_size": 64,
        "model.num_steps": 300,
        "model.ema_decay": 0.95,
        "model.optimizer.method": "adam",
        "model.lr_schedule.warmup_steps": 10,
        "model.lr_schedule.method": "cosine",
        "model.lr_schedule.cosine.value": 1e-3,
    }
)
# --model.learning_rate_factor=0.1 then slows the backbone, not what is new.
config.set_default("model.learning_rate_factor.filter_regex", "^(?!embedding/|proxies)")

# ---------------------------------------------------------------------------- model

config.declare(
    "model.hub_address",
    "pretrained:efficientnet_lite0",
    "Backbone: pretrained:efficientnet_lite0 (to lite4), the URL or folder of a TensorFlow Hub "
    "module or SavedModel, keras:FILE, keras:keras.applications:NAME or kerashub:PRESET (see "
    "docs/pretrained.md), or resnet18, mobilenet or convnet to train from scratch.",
    fixed=True,
    path=True,
)
config.declare(
    "model.hub_input_range",
    "",
    "Pixels that a SavedModel of floats at model.hub_address wants, if it does not say: 0,1 or "
    "-1,1 or 0,255 or imagenet (mean and deviation) or caffe (BGR, mean).",
    choices=("", "0,1", "-1,1", "0,255", "imagenet", "caffe"),
    fixed=True,
)
config.declare(
    "model.pooling",
    "auto",
    "How a Keras model's positions become one vector: class_token, mean, gem, concat (class token "
    "and mean), attention. auto: as the network was trained, by its class token or else the mean.",
    choices=METHODS,
    fixed=True,
)
config.declare(
    "model.lora_rank",
    0,
    "Train low-rank updates of a Keras model's dense layers, of this rank, and not its weights (0: "
    "its weights).",
    fixed=True,
    within="[0, inf)",
)
config.declare(
    "model.drop_path",
    0.0,
    "Share of examples that skip the last block of a Keras model in training; blocks before it are "
    "skipped less, the first never (0: as the network says).",
    within="[0, 1)",
)
config.declare(
    "model.default_image_dimensions",
    [0, 0, 3],
    "Height, width and channels that images are resized to; 0,0,3: as the files of a KerasHub "
    "backbone say, else 224,224,3.",
    fixed=True,
    within="[0, inf)",
)
config.declare(
    "model.reduced_dimension",
    256,
    "Dimensions of the embedding, a linear map of the backbone's features and the colors; 0: these "
    "themselves, and of a backbone with a text tower the features alone, for searches by text.",
    fixed=True,
    within="[0, inf)",
)
config.declare(
    "model.batch_norm",
    "auto",
    "The backbone's batch norm in training. frozen: by its stored averages. train: by the batch, "
    "which also updates them. auto: frozen for pretrained weights, else train.",
    choices=("auto", "frozen", "train"),
)
config.declare(
    "model.cached_features",
    True,
    "Train the head alone, on features of the unchanged backbone that are computed once and kept "
    "on disk. Off: train the backbone too. A backbone from scratch is always trained, and so is "
    "one without a head, for searches by text.",
    fixed=True,
)
config.declare(
    "model.color",
    "auto",
    "Weight of a color histogram that is joined to the features. auto: the one with which the "
    "untrained features find best, 0 included. 0: none.",
    fixed=True,
)
config.declare(
    "model.head_init",
    "auto",
    "What the head starts as. pca: features and colors are centered and brought to length 1, and "
    "step 0 compares as the frozen network. random: a random map of the features as they are. "
    "auto: pca on cached features.",
    choices=("auto", "pca", "random"),
    fixed=True,
)
config.declare("model.loss", "supervised_contrastive", "Loss.", choices=(*LOSSES, *PROXY_LOSSES))
config.declare(
    "model.loss.options",
    [],
    "Further arguments of the loss (see docs/metriclearn.md), as temperature=0.05,reduction=sum.",
    type="list(str)",
)
config.declare(
    "model.margin",
    0.1,
    "Margin of the triplet loss, in units of model.distance.",
    within="[0, inf)",
)
config.declare(
    "model.distance",
    "cosine",
    "Distance of the triplet loss: cosine, euclidean, squared or dot.",
    choices=("cosine", "euclidean", "squared", "dot"),
)
config.declare(
    "model.miner", "batch_hard", "Triplets of the triplet and margin losses.", choices=(*MINERS,)
)
config.declare(
    "model.miner.options",
    [],
    "Further arguments of the miner, as k=3 or fallback=hardest.",
    type="list(str)",
)
config.declare(
    "model.memory_size",
    0,
    "Embeddings of past batches that losses also compare with (cross-batch memory; 0: none).",
    fixed=True,
    within="[0, inf)",
)
config.declare(
    "model.memory_start",
    1000,
    "Steps before the memory is used: embeddings drift at first.",
    within="[0, inf)",
)
config.declare(
    "model.random_within_class",
    0.0,
    "Share of the batches whose products are all of one category.",
    within="[0, 1]",
)
config.declare(
    "model.rwc.by_batch",
    True,
    "Draw the category anew for each batch; otherwise go through all of its products first, and "
    "the share is one of such passes.",
)

# ---------------------------------------------------------------------------- data

config.declare("dataset.name", "sop", "Data set.", choices=(*READERS, *ALIASES))
config.declare(
    "dataset.base_path",
    "",
    "Folder of the data set; of a manifest, the CSV file or its folder.",
    path=True,
)
config.declare(
    "dataset.image_path",
    "",
    "Folder that the images' listed paths are relative to, where it is not that of the lists.",
    path=True,
)
config.declare(
    "dataset.columns", "", "Names of a manifest's columns, if others: path=file,label=sku."
)
config.declare(
    "dataset.train_where",
    "",
    "Train and validate on these rows only: column=value|value,column=value, as "
    "class_split=train_class or category=bags|shoes. All conditions must hold.",
)
config.declare(
    "dataset.test_where",
    "",
    "Evaluate on these rows only, queries and catalogue alike; written as dataset.train_where.",
)
config.declare(
    "dataset.validation", True, "Hold out vld from training; otherwise train on it, too."
)
config.declare(
    "dataset.validation.holdout",
    "",
    "What vld is. Empty: the data set's own validation split or, without one, products. products: "
    "a share of the products, with all their images. photos: a share of each product's "
    "images. both: the two together.",
    choices=("", "products", "photos", "both"),
)
config.declare(
    "dataset.validation.share",
    0.0,
    "Share of the products or images held out; 0: a tenth, but twenty products where that is at "
    "most a fifth.",
    within="[0, 1)",
)
config.declare(
    "dataset.domains",
    False,
    "Queries and catalogue are of different kinds (customers' and shop images): a training batch "
    "holds both kinds of each product.",
)
config.declare(
    "dataset.intradomain_pairs",
    False,
    "With domains and the pairs sampler: pairs may also be of one kind, and negatives of both.",
)
config.declare(
    "dataset.bounding_boxes", True, "Crop to the products' boxes, where the data set has any."
)
config.declare(
    "dataset.sampler",
    "pk",
    "What a batch is. pk: products with some images each. pairs: a query and a positive of each "
    "product. hierarchical: categories, products of each, images of each.",
    choices=("pk", "pairs", "hierarchical"),
)
config.declare(
    "dataset.images_per_product", 4, "Images of each product in a batch.", within="[1, inf)"
)
config.declare(
    "dataset.catalogue_images_per_product",
    1,
    "How many of them, with domains, the catalogue's.",
    within="[1, inf)",
)
config.declare(
    "dataset.categories_per_batch",
    4,
    "Categories in a batch of the hierarchical sampler.",
    within="[1, inf)",
)
config.declare(
    "dataset.augment",
    ["crop", "flip", "colour", "noise", "erasing"],
    "Random changes of training images: a crop before all others, then any of blur, colour, "
    "erasing, flip and noise, in the order given.",
)
config.declare(
    "dataset.augment.smallest_crop",
    0.5,
    "Smallest share of an image's sides that crop keeps, where there is no box to crop near.",
    within="(0, 1]",
)
config.declare(
    "dataset.cached_views",
    1,
    "With cached features, how often each image is embedded: once as it is, and else augmented.",
    within="[1, inf)",
)
config.declare(
    "dataset.on_bad_image",
    "error",
    "How to handle unreadable images: error ends the run, skip drops them before it starts.",
    choices=("error", "skip"),
)
config.declare(
    "dataset.max_pixels",
    100_000_000,
    "Images of more pixels than this are not decoded and count as unreadable.",
    within="[1, inf)",
)
config.declare(
    "dataset.cache_mb",
    0,
    "Memory for decoded training images, in MiB (0: decode each time).",
    within="[0, inf)",
)

# ---------------------------------------------------------------------------- evaluation, export

config.declare(
    "evaluation.precision@k.feature_key",
    "embeddings",
    "Output that images are compared by: embeddings; features of the backbone; or untrained: "
    "features joined to the colors, before the head.",
    choices=("embeddings", "features", "untrained"),
)
config.declare(
    "evaluation.precision@k.max_examples",
    0,
    "Queries to evaluate, a fixed choice (0: all).",
    within="[0, inf)",
)
config.declare(
    "evaluation.precision@k.num_to_retrieve",
    50,
    "Retrieved items to list for each query, at least 5.",
    within="[5, inf)",
)
config.declare("evaluation.precision@k.plot", True, "Draw recall over k.")
config.declare("evaluation.histogram", True, "Draw the histogram of similarities.")
config.declare("actions.export.inputs", ["image"], "Name of the exported model's input.")
config.declare("actions.export.outputs", ["embeddings"], "Outputs of the exported model.")
