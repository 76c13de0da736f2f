"""What all configurations share: every key there is, with the official code's value.

A preset is "variant,dataset", either part may be left out: `configs/v3plus.py:xception_65,voc`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder


def base() -> ConfigDict:
    """Keys and defaults. `model` is the keyword list of `deeplab_jax.models.build`."""
    config = ConfigDict()
    config.seed = 0
    config.init_from = ""  # weights to start from: a weight file, or a workdir of ours
    config.log_every = 50  # steps
    config.spatial_shards = 1  # devices that share an image, each with a band of its rows
    # What is evaluated, predicted with, exported: "newest", "best" or the number of a step
    config.checkpoint = FieldReference("newest", field_type=object)
    config.deterministic = False  # the same bits from run to run on a GPU, too; takes more time

    model = config.model = ConfigDict()
    model.name = "v3plus"
    model.backbone = "xception_65"
    model.num_classes = 21
    model.output_stride = 16
    model.atrous_rates = FieldReference("auto", field_type=object)  # "auto", None or a tuple
    model.multi_grid = placeholder(tuple)
    model.blocks = 4  # of ResNet; up to 7 in [V3]'s cascade
    model.image_pooling = True
    model.separable = True
    model.aspp_channels = 256
    # A stride, several from coarse to fine, or None.
    model.decoder_output_stride = FieldReference(None, field_type=object)
    model.decoder_channels = 256
    model.decoder_convs = 2
    model.decoder_kernel_size = 3
    model.low_level_channels = 48
    model.fc_kernel_size = 3  # v1, and v2 on VGG-16: LargeFOV
    model.fc_channels = 1024
    model.multi_scale_features = False
    model.width_multiplier = 1.0
    model.align_corners = True
    model.logits_stddev = 0.01  # of a fresh classifier
    model.auxiliary = False  # a second classifier, for training
    model.xception_depthwise = "norm"
    # Conventions of weights that were trained elsewhere; `models.build` explains them.
    model.context = "aspp"
    model.image_pooling_crop_size = placeholder(tuple)
    model.image_pooling_stride = (1, 1)
    model.decoder_separable = placeholder(bool)
    model.depthwise_norm = True
    model.aspp_convs = 0
    model.dropout = 0.1  # behind the ASPP
    model.low_level = placeholder(str)
    model.padding = "same"
    model.dilation_start = placeholder(str)
    model.input_scales = placeholder(tuple)
    model.fuse_upsampled = False
    model.batch_norm_decay = placeholder(float)  # None: the official code's
    model.batch_norm_epsilon = placeholder(float)
    # Training: each of so many parts of a batch has statistics of its own. With as many as there
    # are devices these need not wait for each other.
    model.batch_norm_groups = 1
    # Further label maps, for instance {"geometry": 3}: labels for it are "label_geometry".
    model.heads = FieldReference(None, field_type=object)
    model.channel_groups = placeholder(tuple)  # (3, 1): late fusion of RGB and depth
    model.remat = False  # compute activations again in the backward pass: less memory, more time
    model.dtype = "float32"  # "bfloat16": mixed precision

    data = config.data = ConfigDict()
    # synthetic, folder, coco_json, or one of DATASETS below; a classifier's are shapes,
    # image_folder, imagenet
    data.name = "synthetic"
    data.root = ""
    data.channels = "rgb"  # of nyudv2 also rgb_depth, rgb_hha, hha
    data.records = False  # read a published dataset from large files in root, made the first time
    # Of a folder: {id in its masks: id}, all there are; None: its classes.json's, or the same.
    data.label_map = FieldReference(None, field_type=object)
    data.train_split = "train"
    data.normalization = "zero_mean"  # see data/transforms.py; "imagenet": PyTorch's weights
    data.crop_size = (513, 513)
    # px; training images are first brought to about one size, as the official code can.
    data.min_resize_value = placeholder(int)  # of the shorter side
    data.max_resize_value = placeholder(int)  # of the longer side
    data.resize_factor = placeholder(int)  # both sides become a multiple of it plus 1
    data.min_scale_factor = 0.5
    data.max_scale_factor = 2.0
    data.scale_factor_step_size = 0.25
    data.flip = True
    # Of a classifier, which crops windows of at least this share of an image instead of scaling it.
    data.min_crop_area, data.max_aspect_ratio = 0.08, 4 / 3
    data.color_jitter = 0.0  # brightness, contrast, saturation times up to 1 ± this
    data.ignore_label = 255
    data.bootstrap_classes = ()  # [V3] Sec. 4.1: images with any of these class ids appear
    data.bootstrap_copies = 2  # so many times in an epoch
    data.on_error = "error"  # "skip": pass over files that cannot be read (counted by threads)
    data.num_threads = 4  # that make batches ahead of need
    data.num_workers = 0  # processes that do so instead: see benchmarks/NOTES.md
    # "device": the host only decodes and cuts out, for GPU hosts with few cores.
    data.augment_on = "host"
    # Of an image, width times height, before it is decoded; the default is where Pillow refuses.
    data.max_pixels = 178_956_970
    data.max_unpacked_bytes = 100 * 10**9  # of --mode=download, of an archive
    data.max_unpacked_files = 1_000_000
    data.allow_change = False  # resume although the training data are not those of before
    data.cache = False  # keep decoded synthetic scenes in memory
    data.synthetic = ConfigDict({"seed": 0, "version": 1, "depth": False, "geometry": False})

    train = config.train = ConfigDict()
    train.steps = 30_000
    train.batch_size = 16
    train.accumulation_steps = 1
    train.fine_tune_batch_norm = True
    train.freeze_backbone = False  # neither its parameters nor its running statistics move
    train.ema_decay = placeholder(float)  # evaluate and keep a moving average of the variables
    train.checkpoint_every = 1000
    train.keep_checkpoints = 3  # the newest; beside them the best one of the evaluations
    train.eval_every = 5000
    train.on_nan = "stop"  # "skip": steps that are not finite change nothing
    train.max_skipped = 10  # of these in a run; one more stops it

    loss = config.loss = ConfigDict()
    loss.upsample_logits = True  # False: labels are thinned to the logits, as [V1] does
    loss.label_smoothing = 0.0
    # None, a number a class, "median_frequency" or "inverse_log" (see data/balance.py)
    loss.class_weights = FieldReference(None, field_type=object)
    loss.top_k_percent_pixels = 1.0  # below 1 only this share counts, the hardest pixels
    loss.hard_example_mining_step = 0  # steps until that share is reached, in a line from 1
    loss.sample_probability = 1.0  # below 1 each cell of the logits counts by chance
    loss.auxiliary_weight = 0.4  # of an output called "auxiliary"

    optim = config.optim = ConfigDict()
    optim.name = "sgd"  # sgd, adamw
    optim.schedule = "poly"  # poly, step, cosine, constant
    optim.learning_rate = 0.007
    optim.learning_power = 0.9  # of poly
    optim.end_learning_rate = 0.0  # of poly
    optim.learning_rate_decay_step = 2000  # step: the rate times the factor after so many steps
    optim.learning_rate_decay_factor = 0.1
    optim.slow_start_step = 0  # steps at slow_start_learning_rate before the schedule begins
    optim.slow_start_learning_rate = 1e-4
    optim.slow_start_burnin = "none"  # "linear": from there to learning_rate in a line
    optim.momentum = 0.9  # adamw: its first beta
    optim.nesterov = False
    optim.weight_decay = 4e-5  # of dense kernels
    optim.last_layer_gradient_multiplier = 1.0
    optim.last_layers_contain_logits_only = False  # the classifiers alone, not the whole head
    optim.bias_gradient_multiplier = 2.0  # of the convolutions' biases
    optim.clip_norm = placeholder(float)  # highest norm of the loss's whole gradient

    evaluation = config.eval = ConfigDict()
    evaluation.split = "val"
    evaluation.batch_size = 1
    evaluation.crop_size = FieldReference((513, 513), field_type=object)  # None: each image's own
    evaluation.central_fraction = 0.875  # of an image's shorter side that a classifier sees
    evaluation.eval_scales = (1.0,)  # probabilities are averaged over these
    evaluation.add_flipped_images = False
    # Larger images in tiles of so many px; None: whole.
    evaluation.tile_size, evaluation.tile_overlap = placeholder(tuple), 128
    # See images at this (height, width), or with their longer side so long; None: as they are.
    evaluation.resize = FieldReference(None, field_type=object)
    evaluation.model = ConfigDict()  # the same variables at another stride
    evaluation.model.output_stride = placeholder(int)
    evaluation.model.atrous_rates = FieldReference(None, field_type=object)
    evaluation.class_subset = ()  # ids averaged into mean_iou_N beside the whole
    evaluation.trimap_widths = (1, 2, 5, 10, 20, 40)  # px
    evaluation.upper_bounds = ()  # strides, of [FCN] Appendix A
    evaluation.image_counts = False  # write each image's counts, too: eval/counts.npz
    evaluation.panels = 8  # images shown beside truth and prediction

    # The fully connected CRF ([V2] Sec. 3.3); --mode=tune_crf finds the first three for a network.
    evaluation.crf = False
    crf = config.crf = ConfigDict()
    crf.w1, crf.sigma_alpha, crf.sigma_beta = 4.0, 65.0, 3.0
    crf.w2, crf.sigma_gamma, crf.iterations = 3.0, 3.0, 10
    crf.method = placeholder(str)  # modes, fast, exact; None: fast on a CPU, else modes
    tune_crf = config.tune_crf = ConfigDict({"images": 100})  # of eval.split, seen as `eval` says
    tune_crf.w1 = (3.0, 4.0, 5.0, 6.0)
    tune_crf.sigma_alpha = (30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0)
    tune_crf.sigma_beta = (3.0, 4.0, 5.0, 6.0)

    # Linked to the keys they name: setting one sets both, as the weights know one way only.
    predict = config.predict = ConfigDict()
    predict.crop_size = evaluation.get_ref("crop_size")
    predict.normalization = data.get_ref("normalization")
    predict.align_corners = model.get_ref("align_corners")
    predict.eval_scales, predict.add_flipped_images = (1.0,), False
    predict.tile_size, predict.tile_overlap = placeholder(tuple), 128
    predict.resize = FieldReference(None, field_type=object)
    predict.crf = False
    predict.raw_ids = False  # write the dataset's own ids (Cityscapes' labelIds), not the labels
    predict.outputs = ("labels", "overlays")  # also colours, probabilities (float16 .npz)
    predict.batch_size = 1  # images of one padded size at a time; on a CPU more hardly help
    predict.archive = placeholder(str)  # voc, cityscapes: also what their test servers take

    export = config.export = ConfigDict()  # at eval.model's stride, padded as predict.crop_size
    export.probabilities = False  # beside the labels
    export.saved_model = False  # TensorFlow's, too
    export.platforms = ("cpu", "cuda", "rocm", "tpu")
    return config


def synthetic(config: ConfigDict) -> None:
    """The embedded scenes: whole images of 193 px, so rates shrink with them."""
    config.data.name = "synthetic"
    config.data.crop_size = config.eval.crop_size = (193, 193)
    config.data.min_scale_factor, config.data.max_scale_factor = 0.75, 1.25
    config.data.scale_factor_step_size = 0.0
    config.data.cache = True
    config.model.num_classes = 9
    if config.model.atrous_rates == "auto":
        config.model.atrous_rates = (2, 4, 6)  # 6, 12, 18 would see only padding on 13x13 features
    config.eval.batch_size = 10


def voc(config: ConfigDict) -> None:
    """PASCAL VOC 2012 with the SBD annotations ([V3+] Sec. 4)."""
    config.data.name = "voc"
    if config.data.train_split == "train":
        config.data.train_split = "train_aug"
    config.model.num_classes = 21


def camvid(config: ConfigDict) -> None:
    """CamVid in SegNet's split (arXiv 1511.00561): 360x480, 11 classes, rare ones weigh more."""
    config.data.name = "camvid"
    config.data.crop_size = (321, 321)
    config.eval.crop_size = (361, 481)
    config.eval.split = "test"
    config.model.num_classes = 11
    config.loss.class_weights = "median_frequency"
    config.train.steps = 8000
    config.train.eval_every = 1000


def cityscapes(config: ConfigDict) -> None:
    """Cityscapes, fine annotations; crop and steps of the official code's recipe."""
    config.data.name = "cityscapes"
    config.data.crop_size = (769, 769)
    config.eval.crop_size = (1025, 2049)
    config.model.num_classes = 19
    config.train.steps = 90_000


def ade20k(config: ConfigDict) -> None:
    """ADE20K, 150 classes ("other" is void); training sizes and steps of the official recipe, which
    evaluates so, too: eval.resize=513."""
    config.data.name = "ade20k"
    config.data.min_resize_value = config.data.max_resize_value = 513
    config.data.resize_factor = 16
    config.eval.crop_size = None
    config.model.num_classes = 150
    config.train.steps = 150_000


def pascal_context(config: ConfigDict) -> None:
    """PASCAL-Context, 59 classes and background; crop and steps as for VOC ([V2] Sec. 4.2)."""
    config.data.name = "pascal_context"
    config.model.num_classes = 60


def pascal_context_59(config: ConfigDict) -> None:
    """PASCAL-Context without background, which is void ([FCN])."""
    config.data.name = "pascal_context_59"
    config.model.num_classes = 59


def person_part(config: ConfigDict) -> None:
    """PASCAL-Person-Part, six parts and background; crop and steps as for VOC ([V2] Sec. 4.3)."""
    config.data.name = "person_part"
    config.model.num_classes = 7


def coco(config: ConfigDict) -> None:
    """VOC's classes in MS COCO, for VOC to start from; no paper says how long: as for VOC."""
    config.data.name = "coco"
    config.eval.crop_size = (641, 641)
    config.model.num_classes = 21


def coco_stuff(config: ConfigDict) -> None:
    """COCO-Stuff, things and stuff; steps of its authors' DeepLab (arXiv 1612.03716)."""
    config.data.name = "coco_stuff"
    config.eval.crop_size = (641, 641)
    config.model.num_classes = 171
    config.train.steps = 100_000


def nyudv2(config: ConfigDict) -> None:
    """NYUDv2, 40 classes: whole images, 5000 batches of 20 as the released FCN's 100000 images."""
    config.data.name = "nyudv2"
    config.data.crop_size = config.eval.crop_size = (481, 641)
    config.eval.split = "test"
    config.model.num_classes = 40
    config.train.steps = 5000
    config.train.eval_every = 1000


def sift_flow(config: ConfigDict) -> None:
    """SIFT Flow: whole images, as many as the released FCN's; model.heads adds its geometry."""
    config.data.name = "sift_flow"
    config.data.crop_size = config.eval.crop_size = (257, 257)
    config.eval.split = "test"
    config.model.num_classes = 33
    config.train.steps = 5000
    config.train.eval_every = 1000


def folder(config: ConfigDict) -> None:
    """A user's own images/ and masks/: set data.root; --mode=check_data finds the rest."""
    config.data.name = "folder"
    config.model.num_classes = placeholder(int)  # None: as many as the data name
    config.eval.crop_size = None
    # For trainings of minutes, too: the official 0.9997 and 0.01 want tens of thousands of steps.
    config.model.batch_norm_decay = config.model.batch_norm_decay or 0.99
    config.model.logits_stddev = max(config.model.logits_stddev, 0.08)


def coco_json(config: ConfigDict) -> None:
    """A user's own images with COCO's annotations, train.json and val.json: set data.root."""
    folder(config)
    config.data.name = "coco_json"


DATASETS = {
    "synthetic": synthetic,
    "folder": folder,
    "coco_json": coco_json,
    "voc": voc,
    "pascal_context": pascal_context,
    "pascal_context_59": pascal_context_59,
    "person_part": person_part,
    "camvid": camvid,
    "cityscapes": cityscapes,
    "ade20k": ade20k,
    "sift_flow": sift_flow,
    "coco": coco,
    "coco_stuff": coco_stuff,
    "nyudv2": nyudv2,
}


def embedded(config: ConfigDict) -> None:
    """MobileNetV2 at half width, heads of 128 channels: learns the embedded scenes in minutes."""
    config.model.width_multiplier = 0.5
    config.model.aspp_channels = 128
    config.model.decoder_channels = 128
    config.model.batch_norm_decay = 0.95  # 0.9997 would still be at its start after 1000 steps
    config.optim.learning_rate = 0.4
    config.train.batch_size = 8
    config.train.steps = 1000
    config.train.eval_every = 500
    config.train.checkpoint_every = 250


def embedded_without_norm(*rates: int):
    """`embedded` for the heads of v1 and v2, which have no batch norm; `rates` are theirs."""

    def configure(config):
        embedded(config)
        config.optim.learning_rate = 0.05
        config.optim.last_layer_gradient_multiplier = 1.0
        config.model.atrous_rates = rates

    return configure


def trainval(variants: dict) -> dict:
    """{"NAME_trainval": its second stage}: stride 8, batch norm frozen ([V3] Sec. 4.1)."""

    def stage(variant):
        def configure(config):
            variant(config)
            config.model.output_stride = 8
            config.data.train_split = "trainval"
            config.train.fine_tune_batch_norm = False
            config.optim.learning_rate = 0.001

        return configure

    return {f"{name}_trainval": stage(variant) for name, variant in variants.items()}


def compose(
    preset: str,
    variants: dict,
    default: str,
    embedded: dict | None = None,
    datasets: dict | None = None,
) -> ConfigDict:
    """The config of "variant,dataset".

    Args:
      preset: what stands after the colon.
      variants: {name: function(config)}.
      default: the variant where only a dataset is named.
      embedded: {variant: function(config)} recipes for the synthetic data; the first one is what
        an empty preset means.
      datasets: {name: function(config)} in place of `DATASETS`.

    Raises:
      ValueError: for a word that is neither.
    """
    datasets = datasets or DATASETS
    words = [word.strip() for word in preset.split(",") if word.strip()]
    unknown = [word for word in words if word not in variants and word not in datasets]
    if unknown:
        raise ValueError(
            f"no preset {unknown[0]!r}; variants: {', '.join(variants)}; "
            f"datasets: {', '.join(datasets)}"
        )
    embedded = embedded or {}
    variant = next((w for w in words if w in variants), None)
    dataset = next((w for w in words if w in datasets), "synthetic")
    if len(words) > (variant is not None) + (dataset in words):
        raise ValueError(f"preset {preset!r}: at most one variant and one dataset")
    if variant is None:
        variant = next(iter(embedded)) if dataset == "synthetic" and embedded else default
    config = base()
    variants[variant](config)
    datasets[dataset](config)
    if dataset == "synthetic" and variant in embedded:
        embedded[variant](config)
    return config
