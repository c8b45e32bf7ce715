"""The settings of the ranker; each is a flag: `--model.hub_address=resnet18`."""

from metriclearn import LOSSES, MINERS, PROXY_LOSSES
from metriclearn.datasets import READERS
from models.backbones.pooling import METHODS
from trainer.config import Config

# Names of data sets in the first version of this model.
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
# --model.learning_rate_factor=0.1 then slows the backbone, not the head.
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
    "Pixel range of a SavedModel that takes floats and does not state it: 0,1 or "
    "-1,1 or 0,255 or imagenet (mean and deviation) or caffe (BGR, mean).",
    choices=("", "0,1", "-1,1", "0,255", "imagenet", "caffe"),
    fixed=True,
)
config.declare(
    "model.pooling",
    "auto",
    "How the output of a Keras model is reduced to one vector: class_token, mean, gem, concat "
    "(class token and mean), attention. auto: the class token if there is one, otherwise the mean.",
    choices=METHODS,
    fixed=True,
)
config.declare(
    "model.lora_rank",
    0,
    "Train low-rank updates of a Keras model's dense layers with this rank, not its weights (0: "
    "its weights).",
    fixed=True,
    within="[0, inf)",
)
config.declare(
    "model.drop_path",
    0.0,
    "Fraction of examples that skip the last block of a Keras model in training; earlier blocks "
    "are skipped less often, the first never (0: the network's own rate).",
    within="[0, 1)",
)
config.declare(
    "model.default_image_dimensions",
    [0, 0, 3],
    "Height, width and channels of the resized images; 0,0,3: the size in the files of a KerasHub "
    "backbone, otherwise 224,224,3.",
    fixed=True,
    within="[0, inf)",
)
config.declare(
    "model.reduced_dimension",
    256,
    "Dimensions of the embedding, a linear map of the backbone's features and the colors. 0: no "
    "map; with a text tower the embedding is then the features alone, for searches by text.",
    fixed=True,
    within="[0, inf)",
)
config.declare(
    "model.batch_norm",
    "auto",
    "The backbone's batch norm in training. frozen: use its stored averages. train: use the batch "
    "and update the averages. auto: frozen for pretrained weights, otherwise train.",
    choices=("auto", "frozen", "train"),
)
config.declare(
    "model.cached_features",
    True,
    "Train only the head, on features of the unchanged backbone that are computed once and kept "
    "on disk. Off: train the backbone too. A backbone from scratch is always trained, and so is "
    "a backbone without a head, for searches by text.",
    fixed=True,
)
config.declare(
    "model.color",
    "auto",
    "Weight of the color histogram that is concatenated with the features. auto: the weight with "
    "the best recall before training, possibly 0. 0: no colors.",
    fixed=True,
)
config.declare(
    "model.head_init",
    "auto",
    "The initial head. pca: features and colors are centered and scaled to length 1, and step 0 "
    "ranks like the frozen network. random: a random map of the features without centering. "
    "auto: pca with cached features.",
    choices=("auto", "pca", "random"),
    fixed=True,
)
config.declare("model.loss", "supervised_contrastive", "Loss.", choices=(*LOSSES, *PROXY_LOSSES))
config.declare(
    "model.loss.options",
    [],
    "Other arguments of the loss (docs/metriclearn.md), such as temperature=0.05,reduction=sum.",
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
    "model.miner", "batch_hard", "Miner of the triplet and margin losses.", choices=(*MINERS,)
)
config.declare(
    "model.miner.options",
    [],
    "Other arguments of the miner, such as k=3 or fallback=hardest.",
    type="list(str)",
)
config.declare(
    "model.memory_size",
    0,
    "Number of embeddings of past batches in the loss (cross-batch memory; 0: none).",
    fixed=True,
    within="[0, inf)",
)
config.declare(
    "model.memory_start",
    1000,
    "Steps before the memory is used, because embeddings change quickly at first.",
    within="[0, inf)",
)
config.declare(
    "model.random_within_class",
    0.0,
    "Fraction of the batches whose products are all in one category.",
    within="[0, 1]",
)
config.declare(
    "model.rwc.by_batch",
    True,
    "Draw a category for each batch. Otherwise keep it until all of its products have been in a "
    "batch; the fraction is then that of such passes.",
)

# ---------------------------------------------------------------------------- data

config.declare("dataset.name", "sop", "Data set.", choices=(*READERS, *ALIASES))
config.declare(
    "dataset.base_path",
    "",
    "Folder of the data set; for a manifest, the CSV file or its folder.",
    path=True,
)
config.declare(
    "dataset.image_path",
    "",
    "Folder to which the images' paths are relative, if it is not the folder of the lists.",
    path=True,
)
config.declare(
    "dataset.columns", "", "Names of a manifest's columns, if they differ: path=file,label=sku."
)
config.declare(
    "dataset.train_where",
    "",
    "Train and validate only on these rows: column=value|value,column=value, such as "
    "class_split=train_class or category=bags|shoes. All conditions must hold.",
)
config.declare(
    "dataset.test_where",
    "",
    "Evaluate only on these rows, queries and catalogue; the same form as dataset.train_where.",
)
config.declare(
    "dataset.validation",
    True,
    "Hold out validation images; otherwise train on them too.",
)
config.declare(
    "dataset.validation.holdout",
    "",
    "The validation images. Empty: the data set's validation split or, without one, as products. "
    "products: a fraction of the products, with all their images. photos: a fraction of each "
    "product's images. both: products and photos.",
    choices=("", "products", "photos", "both"),
)
config.declare(
    "dataset.validation.share",
    0.0,
    "Fraction of the products or images to hold out; 0: a tenth, but twenty products if that is at "
    "most a fifth.",
    within="[0, 1)",
)
config.declare(
    "dataset.domains",
    False,
    "Queries and catalogue are different kinds of image (customers' and shop images): a training "
    "batch has both kinds of each product.",
)
config.declare(
    "dataset.intradomain_pairs",
    False,
    "With domains and the pairs sampler: pairs may also be of one kind, negatives of both.",
)
config.declare(
    "dataset.bounding_boxes", True, "Crop to the products' boxes, if the data set has boxes."
)
config.declare(
    "dataset.sampler",
    "pk",
    "The images of a batch. pk: several images per product. pairs: a query and a positive per "
    "product. hierarchical: several categories, products per category, and images per product.",
    choices=("pk", "pairs", "hierarchical"),
)
config.declare("dataset.images_per_product", 4, "Images per product in a batch.", within="[1, inf)")
config.declare(
    "dataset.catalogue_images_per_product",
    1,
    "With domains, the number of these that are catalogue images.",
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
    "Augmentation of training images: crop, which must come first, and any of blur, colour, "
    "erasing, flip and noise, in the given order.",
)
config.declare(
    "dataset.augment.smallest_crop",
    0.5,
    "Smallest fraction of an image's sides that crop keeps, if there is no box.",
    within="(0, 1]",
)
config.declare(
    "dataset.cached_views",
    1,
    "Number of views per image with cached features: one original, the others augmented.",
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
    "Images with more pixels than this are not decoded and count as unreadable.",
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
    "Output by which images are compared: embeddings, features (of the backbone), or untrained "
    "(features and colors, before the head).",
    choices=("embeddings", "features", "untrained"),
)
config.declare(
    "evaluation.precision@k.max_examples",
    0,
    "Maximum number of queries, a fixed random choice (0: all).",
    within="[0, inf)",
)
config.declare(
    "evaluation.precision@k.num_to_retrieve",
    50,
    "Retrieved items to list per query, at least 5.",
    within="[5, inf)",
)
config.declare("evaluation.precision@k.plot", True, "Plot recall over k.")
config.declare("evaluation.histogram", True, "Plot the histogram of similarities.")
config.declare("actions.export.inputs", ["image"], "Name of the exported model's input.")
config.declare("actions.export.outputs", ["embeddings"], "Outputs of the exported model.")
