"""Builds any model of the papers from the keywords of `config.model`."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from deeplab_jax import ops
from deeplab_jax.models import mobilenet_v3, resnet, xception
from deeplab_jax.models.alexnet import AlexNet
from deeplab_jax.models.aspp import ASPP, DensePredictionCell
from deeplab_jax.models.classifier import TAILS, Classifier, Tail
from deeplab_jax.models.deeplab import Decoder, DeepLab
from deeplab_jax.models.fcn import FCN, FCNHead, PlainFCN
from deeplab_jax.models.fusion import Heads, LateFusion
from deeplab_jax.models.googlenet import GoogLeNet
from deeplab_jax.models.layers import BatchNorm, Logits
from deeplab_jax.models.lraspp import LRASPP
from deeplab_jax.models.mobilenet_v2 import MobileNetV2
from deeplab_jax.models.mobilenet_v3 import MobileNetV3
from deeplab_jax.models.resnet import ResNet
from deeplab_jax.models.v1 import DeepLabV1, FullyConnected, MultiScaleFeatures
from deeplab_jax.models.v2 import DeepLabV2, MultiScale
from deeplab_jax.models.vgg import VGG16
from deeplab_jax.models.xception import Xception

NAMES = ("classifier", "fcn", "v1", "v2", "v3", "v3plus")
CONTEXTS = ("aspp", "dpc", "lraspp", "none")
# FCN's classifiers: size of fc6 at their last pooling, and the share that is dropped.
CLASSIFIERS = {
    "alexnet": (6, 0.5),
    "vgg16": (7, 0.5),
    "vgg16_bn": (7, 0.5),
    "googlenet": (None, 0.2),
    "googlenet_5x5": (None, 0.4),
}
BACKBONES = (
    *resnet.VARIANTS,
    *xception.UNITS,
    "mobilenet_v2",
    *mobilenet_v3.BLOCKS,
    *CLASSIFIERS,
)
OUTPUT_STRIDES = (8, 16, 32, 64, 128, 256)  # past 32: [V3]'s cascade with every stride

# Atrous rates and the output stride they are for ([V2] Sec. 4.1.2, [V3] Sec. 3.3).
V2_RATES, V3_RATES = ((6, 12, 18, 24), 8), ((6, 12, 18), 16)
# fc6's (kernel size - 1) * rate at stride 8, for a field of view of 224 px ([V2] Table 1).
V1_REACH = 24
# (decay of the running statistics, epsilon) of the official code; of VGG and GoogLeNet
# torchvision's.
BACKBONE_NORM = {
    "resnet": (0.95, 1e-5),
    "xception": (0.9997, 1e-3),
    "mobilenet": (0.997, 1e-3),
    "vgg16": (0.9, 1e-5),
    "googlenet": (0.9, 1e-3),
}
HEAD_NORM = (0.9997, 1e-5)


def build(
    name: str,
    backbone: str | Callable[..., nn.Module],
    num_classes: int,
    *,
    output_stride: int = 16,
    atrous_rates: Sequence[int] | str | None = "auto",
    multi_grid: Sequence[int] | None = None,
    blocks: int = 4,
    context: str = "aspp",
    image_pooling: bool = True,
    image_pooling_crop_size: tuple[int, int] | None = None,
    image_pooling_stride: tuple[int, int] = (1, 1),
    separable: bool = True,
    decoder_separable: bool | None = None,
    depthwise_norm: bool = True,
    aspp_channels: int = 256,
    aspp_convs: int = 0,
    dropout: float = 0.1,
    decoder_output_stride: int | Sequence[int] | None = 4,
    decoder_channels: int = 256,
    decoder_convs: int = 2,
    decoder_kernel_size: int = 3,
    low_level_channels: int = 48,
    low_level: str | None = None,
    logits_stddev: float = 0.01,
    auxiliary: bool = False,
    xception_depthwise: str = "norm",
    fc_kernel_size: int = 3,
    fc_channels: int = 1024,
    multi_scale_features: bool = False,
    width_multiplier: float = 1.0,
    align_corners: bool = True,
    padding: str = "same",
    dilation_start: str | None = None,
    input_scales: Sequence[float] | None = None,
    fuse_upsampled: bool = False,
    batch_norm_decay: float | None = None,
    batch_norm_epsilon: float | None = None,
    batch_norm_groups: int = 1,
    heads: Mapping[str, int] | None = None,
    channel_groups: Sequence[int] | None = None,
    remat: bool = False,
    dtype: str = "float32",
) -> nn.Module:
    """Builds the Flax module whose variables are {"params", "batch_stats"}.

    The variables do not depend on `output_stride` and `atrous_rates` (as long as the number of
    rates stays): weights trained at stride 16 apply at 8, which is the papers' evaluation.

    Args:
      name: "v3plus" ([V3+], with decoder), "v3" ([V3], without), "v2" ([V2], a sum of atrous
        branches), "v1" ([V1], one branch), "fcn" ([FCN] on its classifiers, VGG-16, AlexNet and
        GoogLeNet; on any other backbone the plain head of PyTorch's fcn_resnet50) or "classifier"
        (an image's class, what backbones are pretrained as: logits [B, 1, 1, num_classes]).
      backbone: one of `BACKBONES` (models/resnet.py tells the shapes of ResNet), or an encoder of
        your own, as a callable or as "module:attribute": called with output_stride, norm, dtype
        and name, it makes a module that takes (images, train) and returns {"features",
        "low_level_4", ...}.
      num_classes: including background.
      output_stride: input size over feature size: 8, 16 or 32; with `blocks` up to 256.
      atrous_rates: of the 3x3 branches. "auto" follows the output stride (32 → 3,6,9; 16 →
        6,12,18; 8 → 12,24,36; v2 at 8 → 6,12,18,24; v1 takes one, at 8 → 24 / (fc_kernel_size -
        1)); None or () leaves these branches out, which makes v2 a plain 1x1 classifier.
      multi_grid: rates inside the last block, relative to the block's own (ResNet, Xception);
        None is (1, 1, 1).
      blocks: of ResNet: 4, or up to 7 in [V3]'s cascade.
      context: of v3 and v3plus: "aspp", "dpc" (the dense prediction cell of xception_71_dpc),
        "lraspp" (MobileNetV3's, with a decoder that sums two classifiers) or "none" (the cascade:
        logits on the backbone).
      image_pooling: image-level features in the ASPP.
      image_pooling_crop_size, image_pooling_stride: image size (height, width) that is pooled into
        one feature, and the step between them at feature resolution; None pools all there is.
      separable: depthwise separable 3x3 convolutions in ASPP and decoder.
      decoder_separable: the same of the decoder alone; None follows `separable`.
      depthwise_norm: batch norm and ReLU between the halves of a head's separable convolution.
      aspp_channels: channels of each ASPP branch and of its projection.
      aspp_convs: 3x3 convolutions behind the ASPP's projection (PyTorch's ports: 1).
      dropout: of v3 and v3plus: the share dropped behind the ASPP's projection in training; of a
        classifier: before its last layer, and behind fc6.
      decoder_output_stride: stride of the decoder's low-level features (4, 8 or 16, at most
        output_stride); (8, 4) refines in two stages; None is no decoder. v3 has none whatever this
        says. Of fcn on VGG-16 at stride 32: None is FCN-32s, 16 FCN-16s, 8 FCN-8s.
      decoder_channels, decoder_convs, decoder_kernel_size, low_level_channels: of the decoder's
        convolutions, and the channels its low-level features are reduced to ([V3+] Tables 1 and 2).
      low_level: where the decoder taps the backbone: "inner", inside the unit that strides next
        (the official code), or "output", the last unit at that stride (PyTorch's ports). None is
        the backbone's own; for the MobileNets alone.
      logits_stddev: of the fresh classifier's kernel. 0.01 is the papers'; 0.08 (Xavier's for 256
        channels and 21 classes) learns in fewer steps.
      auxiliary: of v3 and v3plus: a second classifier on the features before the last block; the
        output in training is then {"logits", "auxiliary"}.
      xception_depthwise: what follows Xception's depthwise convolutions, see `Xception`.
      fc_kernel_size, fc_channels: of fc6, and of fc6 and fc7, in v1 and in every branch of v2 on
        VGG-16 ([V2] Table 1: 7 or 4 with 4096, LargeFOV 3 with 1024). fcn and a classifier take
        the original's size and fc_channels.
      multi_scale_features: v1's classifier reads the image and four poolings, too ([V1] "MSc").
      width_multiplier: of MobileNetV2.
      align_corners: of the upsampling in the decoder.
      padding: of the MobileNets: "same" (TensorFlow), "fixed" (PyTorch), "block" and
        "block_bare_stem" (two PyTorch ports, see `MobileNetV2`); of AlexNet "same" or "fixed".
      dilation_start: where rates begin when a stride is taken away, see `ops.strides_and_rates`;
        None is the backbone's own.
      input_scales: run the network on the image at each scale and take the maximum of the logits
        ([V2] MSC); the output is then a dict with every scale's logits, the answer in "logits".
      fuse_upsampled: take that maximum after upsampling to the image, not before.
      batch_norm_decay, batch_norm_epsilon: None takes the official code's, which differ between
        backbone and head; a decay given here goes for both, an epsilon for the backbone.
      batch_norm_groups: parts of a batch that have statistics of their own in training. As many as
        devices: none waits for the others' there, as in the official code on several GPUs.
      heads: {name: classes} of further label maps; the output is then a dict with theirs beside
        "logits", and an example's labels for NAME are its "label_NAME".
      channel_groups: channels of an image that go through a net each, whose scores are summed:
        (3, 1) is late fusion of RGB and depth.
      remat: keep of every backbone unit only its input for the backward pass and compute the rest
        again: less memory, more time.
      dtype: of the computation, "float32", "bfloat16" or "float64"; parameters and batch
        statistics keep float32, and so do the logits.

    Raises:
      ValueError: for an unknown or impossible choice, naming those there are.
    """
    _check("name", name, NAMES)
    own = callable(backbone) or ":" in backbone
    if not own:
        _check("backbone", backbone, BACKBONES)
    _check("output_stride", output_stride, OUTPUT_STRIDES)
    _check("context", context, CONTEXTS)
    strides = decoder_output_stride
    strides = (strides or ()) if not isinstance(strides, int) else (strides,)
    for stride in strides:
        _check("decoder_output_stride", stride, (4, 8, 16))
    if list(strides) != sorted(set(strides), reverse=True):
        raise ValueError(f"decoder_output_stride {strides} must go from coarse to fine")
    _check("decoder_kernel_size", decoder_kernel_size, (1, 3))
    _check("low_level", low_level, (None, "inner", "output"))
    _check("dtype", dtype, ("float32", "bfloat16", "float64"))
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout {dropout} must be at least 0 and below 1")
    rates = head_rates(name, output_stride, atrous_rates, fc_kernel_size)
    if name == "v3plus" and max(strides, default=0) > output_stride:
        raise ValueError(
            f"decoder_output_stride {decoder_output_stride} is coarser than the features, which "
            f"have output_stride {output_stride}"
        )

    vgg = backbone in ("vgg16", "vgg16_bn")
    if name == "v1" and len(rates) != 1:
        raise ValueError(f"v1 takes one rate in atrous_rates, not {rates}")
    if name == "v2" and vgg and not rates:
        raise ValueError("v2 on vgg16 has a branch a rate: atrous_rates must not be empty")
    if multi_scale_features and not (name == "v1" and vgg):
        raise ValueError(
            f"multi_scale_features applies to v1 on vgg16, not to {name} on {backbone}"
        )

    if name == "classifier" and output_stride != 32:
        raise ValueError(f"a classifier has output_stride 32, not {output_stride}")
    classic = name == "fcn" and backbone in CLASSIFIERS
    if classic:
        if output_stride != 32 or (strides and not vgg) or strides not in ((), (16,), (8,)):
            raise ValueError(
                "fcn on a classifier has output_stride 32, and on VGG-16 alone a "
                f"decoder_output_stride, 16 or 8; not {output_stride} and {decoder_output_stride}"
            )
        strides = tuple(s for s in (16, 8) if strides and s >= strides[0])
    elif backbone in ("alexnet", "googlenet", "googlenet_5x5") and name != "classifier":
        raise ValueError(f"{backbone} is a backbone of fcn alone: it has no atrous form")

    family = "own" if own else backbone.split("_")[0]
    decay, epsilon = BACKBONE_NORM.get(family, HEAD_NORM)
    norm = _norm(batch_norm_decay or decay, batch_norm_epsilon or epsilon, batch_norm_groups, dtype)
    encoder = _encoder(
        backbone,
        output_stride=output_stride,
        multi_grid=multi_grid,
        blocks=blocks,
        xception_depthwise=xception_depthwise,
        width_multiplier=width_multiplier,
        padding=padding,
        dilation_start=dilation_start,
        low_level=low_level,
        pool_size=2 if classic or name == "classifier" else 3,
        remat=remat,
        dtype=jnp.dtype(dtype),
        norm=norm,
    )
    decay, epsilon = HEAD_NORM
    common = {
        "norm": _norm(batch_norm_decay or decay, epsilon, batch_norm_groups, dtype),
        "dtype": jnp.dtype(dtype),
    }
    pooling = {"pooling_window": None, "pooling_stride": tuple(image_pooling_stride)}
    if image_pooling_crop_size is not None:
        pooling["pooling_window"] = ops.scaled_size(
            image_pooling_crop_size, 1 / output_stride, align_corners=True
        )

    heads = {"logits": num_classes} | dict(heads or {})
    classifier = partial(Logits, sum(heads.values()), logits_stddev)
    fcn_head = partial(FCNHead, classifier=classifier, **common)
    fully_connected = partial(FullyConnected, features=fc_channels, dtype=common["dtype"])
    if name == "classifier":
        tail = TAILS.get(backbone, Tail())
        network = Classifier(
            encoder,
            tail,
            width_multiplier,
            partial(fully_connected, tail.window, 1),
            dropout,
            norm,
            classifier,
            common["dtype"],
        )
    elif name == "v1":
        fully_connected = partial(fully_connected, fc_kernel_size, rates[0])
        beside = partial(MultiScaleFeatures, output_stride, common["dtype"])
        network = DeepLabV1(
            encoder, fully_connected, beside if multi_scale_features else None, classifier
        )
    elif name == "v2" and vgg:
        network = DeepLabV2(encoder, rates, fc_kernel_size, classifier, fully_connected)
    elif name == "v2":
        network = DeepLabV2(encoder, rates or (1,), 3 if rates else 1, classifier)
    elif classic:
        size, dropped = CLASSIFIERS[backbone]
        fully_connected = partial(fully_connected, size, 1)
        if backbone == "alexnet":  # its fields begin 15.5 px to the left of those of VGG-16
            fully_connected = partial(fully_connected, padding=((3, 2), (3, 2)))
        network = FCN(encoder, fully_connected if size else None, strides, dropped, classifier)
    elif name == "fcn":
        network = PlainFCN(encoder, fcn_head)
    elif context == "lraspp":
        if name != "v3plus" or len(strides) != 1 or not image_pooling:
            raise ValueError(
                "context 'lraspp' is v3plus with one decoder_output_stride and image_pooling"
            )
        network = LRASPP(
            encoder,
            features=aspp_channels,
            decoder_output_stride=strides[0],
            classifier=classifier,
            align_corners=align_corners,
            **pooling,
            **common,
        )
    else:
        separables = {"separable": separable, "depthwise_norm": depthwise_norm}
        if context == "dpc":
            gather = partial(
                DensePredictionCell, output_stride, aspp_channels, **common, name="cell"
            )
        elif context == "none":
            gather = None
        else:
            gather = partial(
                ASPP,
                rates=rates,
                features=aspp_channels,
                image_pooling=image_pooling,
                convs=aspp_convs,
                **separables,
                **pooling,
                **common,
                name="aspp",
            )
        if decoder_separable is not None:
            separables["separable"] = decoder_separable
        decoder = partial(
            Decoder,
            low_level_features=low_level_channels,
            features=decoder_channels,
            convs=decoder_convs,
            kernel_size=decoder_kernel_size,
            align_corners=align_corners,
            **separables,
            **common,
        )
        network = DeepLab(
            encoder,
            gather,
            decoder,
            strides if name == "v3plus" else (),
            dropout,
            fcn_head if auxiliary else None,
            classifier,
        )
    if name == "classifier" and (len(heads) > 1 or input_scales or auxiliary or channel_groups):
        raise ValueError("a classifier has no heads, input_scales, auxiliary or channel_groups")
    if len(heads) > 1 and (input_scales or auxiliary):
        raise ValueError("heads go neither with input_scales nor with an auxiliary classifier")
    if channel_groups and (input_scales or auxiliary):
        raise ValueError("channel_groups go neither with input_scales nor with auxiliary")
    nets = [network.clone() for _ in channel_groups or (None,)]
    if len(heads) > 1:
        nets = [Heads(net, tuple(heads.items())) for net in nets]
    network = LateFusion(tuple(nets), tuple(channel_groups)) if channel_groups else nets[0]
    if input_scales:
        network = MultiScale(network, tuple(input_scales), align_corners, fuse_upsampled)
    return network


def head_rates(
    name: str,
    output_stride: int,
    atrous_rates: Sequence[int] | str | None,
    fc_kernel_size: int = 3,
) -> tuple[int, ...]:
    """The rates of the head's 3x3 branches at the features; arguments and errors as `build`'s."""
    if isinstance(atrous_rates, str):
        _check("atrous_rates", atrous_rates, ("auto",))
        given = V2_RATES if name == "v2" else V3_RATES
        if name == "v1":
            given = (V1_REACH // max(fc_kernel_size - 1, 1),), 8
        atrous_rates = ops.default_atrous_rates(output_stride, *given)
    return tuple(atrous_rates or ())


def _encoder(
    backbone,
    *,
    multi_grid,
    blocks,
    xception_depthwise,
    width_multiplier,
    padding,
    dilation_start,
    low_level,
    pool_size,
    remat,
    **common,
):
    """What makes the backbone; refuses the choices that do not apply to it."""
    if callable(backbone):
        return partial(backbone, **common)
    if ":" in backbone:
        return partial(_imported(backbone), **common)
    common["remat"] = remat
    mobile = backbone.startswith("mobilenet")
    _check("dilation_start", dilation_start, (None, "after", "at", "next_stage"))
    if width_multiplier != 1 and backbone != "mobilenet_v2":
        raise ValueError(f"width_multiplier applies to mobilenet_v2, not to {backbone}")
    if multi_grid and (mobile or backbone in CLASSIFIERS):
        raise ValueError(f"multi_grid does not apply to {backbone}")
    if multi_grid and len(multi_grid) != 3:
        raise ValueError(f"multi_grid takes three rates, not {tuple(multi_grid)}")
    _check("blocks", blocks, range(4, resnet.MAX_BLOCKS + 1))
    if blocks > 4 and backbone not in resnet.VARIANTS:
        raise ValueError(f"blocks applies to ResNet, not to {backbone}")
    _check("xception_depthwise", xception_depthwise, ("norm", "norm_relu", "bare"))
    if xception_depthwise != "norm" and backbone not in xception.UNITS:
        raise ValueError(f"xception_depthwise applies to Xception, not to {backbone}")
    if not mobile and (low_level or (padding != "same" and backbone != "alexnet")):
        raise ValueError(f"padding and low_level apply to the MobileNets, not to {backbone}")
    if dilation_start == "next_stage" and backbone != "mobilenet_v2":
        raise ValueError(f"dilation_start 'next_stage' applies to mobilenet_v2, not to {backbone}")

    if backbone == "mobilenet_v2":
        _check("padding", padding, ("same", "fixed", "block", "block_bare_stem"))
        return partial(
            MobileNetV2,
            width_multiplier=width_multiplier,
            padding=padding,
            low_level=low_level or "inner",
            dilation_start=dilation_start or "after",
            **common,
        )
    if mobile:
        _check("padding", padding, ("same", "fixed"))
        return partial(
            MobileNetV3,
            backbone,
            padding=padding,
            low_level=low_level or "inner",
            dilation_start=dilation_start or "after",
            gate_slope=mobilenet_v3.TF_GATE_SLOPE if padding == "same" else 1 / 6,
            **common,
        )
    grid = tuple(multi_grid or (1, 1, 1))
    if backbone in resnet.VARIANTS:
        return partial(
            ResNet,
            backbone,
            blocks=blocks,
            multi_grid=grid,
            dilation_start=dilation_start,
            **common,
        )
    if dilation_start not in (None, "after"):
        raise ValueError(f"dilation_start {dilation_start!r} does not apply to {backbone}")
    if backbone.startswith("googlenet"):
        del common["output_stride"]
        return partial(GoogLeNet, wide_kernel_size=5 if "5x5" in backbone else 3, **common)
    if backbone in CLASSIFIERS and not backbone.endswith("_bn"):
        del common["norm"]
    if backbone == "alexnet":
        del common["output_stride"]
        _check("padding", padding, ("same", "fixed"))
        return partial(AlexNet, padding=padding, **common)
    if backbone in CLASSIFIERS:
        return partial(VGG16, pool_size=pool_size, **common)
    return partial(Xception, backbone, multi_grid=grid, depthwise=xception_depthwise, **common)


def _imported(name: str) -> Callable[..., nn.Module]:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"backbone {name!r}: {error}") from error


def _norm(decay: float, epsilon: float, groups: int, dtype: str):
    return partial(
        BatchNorm, momentum=decay, epsilon=epsilon, groups=groups, dtype=jnp.dtype(dtype)
    )


def _check(keyword: str, value, allowed) -> None:
    if value not in allowed:
        raise ValueError(f"{keyword} {value!r} is not one of {', '.join(map(repr, allowed))}")
