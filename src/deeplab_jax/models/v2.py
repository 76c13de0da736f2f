"""DeepLabv2 ([V2]): a sum of atrous branches, and multi-scale inputs fused by maximum."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from deeplab_jax import ops
from deeplab_jax.models.layers import Network


class DeepLabV2(Network):
    """Backbone → parallel branches, each with a classifier → their sum ([V2] Sec. 3.2, "ASPP").

    On ResNet-101 a branch is its classifier, which has kernel and rate itself (Sec. 4.1.2); on
    VGG-16 fc6 has them, behind it come fc7 and a 1x1 classifier (Fig. 7).

    Attributes:
      rates: atrous rate of each branch.
      kernel_size: of a branch: 3; 1 is the plain classifier, the first row of Table 4.
      classifier: makes a layer that ends in logits.
      fully_connected: makes a branch's fc6 and fc7, called with a dropout; None: classifiers alone.
    """

    rates: Sequence[int]
    kernel_size: int
    classifier: Callable[..., nn.Module]
    fully_connected: Callable[..., nn.Module] | None = None

    def classify(self, images, endpoints, batch_norm, train):
        dropout = nn.Dropout(0.5, deterministic=not train)
        scores = []
        for i, rate in enumerate(self.rates, start=1):
            atrous, x = {"kernel_size": self.kernel_size, "rate": rate}, endpoints["features"]
            if self.fully_connected is not None:
                x = self.fully_connected(**atrous, name=f"branch{i}")(x, dropout)
                atrous = {}
            scores.append(self.classifier(**atrous, name=f"logits{i}")(x))
        return sum(scores)


class MultiScale(nn.Module):
    """The same network on the image at several scales, fused by maximum ([V2] Sec. 4.3, "MSC").

    Attributes:
      network: what is shared by the scales; its variables are this module's.
      scales: of the input, for instance (0.5, 0.75, 1); the logits have the size of the largest.
      align_corners: of the resizing of images and logits.
      fuse_upsampled: upsample every scale's logits to the image before the maximum.
    """

    network: nn.Module
    scales: Sequence[float]
    align_corners: bool
    fuse_upsampled: bool = False

    def setup(self):
        nn.share_scope(self, self.network)

    def __call__(self, images: jax.Array, **mode) -> dict[str, jax.Array]:
        """images [B, H, W, C] → {"logits": the maximum, "logits_0.5": ..., ...} for the losses."""
        outputs, sizes = {}, {}
        for scale in self.scales:
            size = ops.scaled_size(images.shape[1:3], scale, self.align_corners)
            scaled = ops.resize_bilinear(images, size, self.align_corners, scale)
            sizes[f"logits_{scale:g}"] = size
            outputs[f"logits_{scale:g}"] = self.network(scaled, **mode)
        size = outputs[f"logits_{max(self.scales):g}"].shape[1:3]
        resize = partial(ops.resize_bilinear, align_corners=self.align_corners)
        upsampled = outputs
        if self.fuse_upsampled:
            size = images.shape[1:3]
            upsampled = {name: resize(logits, sizes[name]) for name, logits in outputs.items()}
        upsampled = [resize(logits, size) for logits in upsampled.values()]
        return {"logits": jnp.stack(upsampled).max(axis=0)} | outputs
