"""What backbones are pretrained as: image classifiers, with the tail that each paper gives them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from deeplab_jax import ops
from deeplab_jax.models.layers import Conv, ConvBN, Network
from deeplab_jax.models.mobilenet_v2 import make_divisible
from deeplab_jax.models.mobilenet_v3 import hard_swish


class Tail(NamedTuple):
    """What stands between a backbone's features and the classifier, beside the pooling.

    Attributes:
      before: channels of a 1x1 convolution with batch norm before the pooling, or None.
      after: channels of a 1x1 convolution behind it, or None.
      window: None; or side in features of what fc6 sees, which takes the pooling's place.
    """

    before: int | None = None
    after: int | None = None
    window: int | None = None


TAILS = {
    "mobilenet_v2": Tail(before=1280),
    "mobilenet_v3_large": Tail(after=1280),
    "mobilenet_v3_large_seg": Tail(after=1280),
    "mobilenet_v3_small": Tail(after=1024),
    "mobilenet_v3_small_seg": Tail(after=1024),
    "alexnet": Tail(window=6),
    "vgg16": Tail(window=7),
    "vgg16_bn": Tail(window=7),
}


class Classifier(Network):
    """Backbone → pooled features → scores [B, 1, 1, classes]: a label map of one pixel.

    Of AlexNet and VGG-16 fc6 and fc7 take the place of the pooling, as in the papers: they see
    windows that lie in the image, whose scores are averaged; where it is smaller than a window,
    zeros around it fill that up.

    Attributes:
      tail: of the backbone.
      width_multiplier: of the backbone; above 1 the tail is as much wider.
      fully_connected: makes fc6 and fc7; called with the padding of fc6.
      dropout: share dropped before the classifier, and behind fc6.
      norm: makes a batch norm, as the backbone's.
      classifier: makes the layer that ends in scores.
    """

    tail: Tail
    width_multiplier: float
    fully_connected: Callable[..., nn.Module]
    dropout: float
    norm: Callable[..., nn.Module]
    classifier: Callable[..., nn.Module]
    dtype: Any

    def classify(self, images, endpoints, batch_norm, train):
        dropout = nn.Dropout(self.dropout, deterministic=not train)
        x = endpoints["features"]
        if self.tail.window:
            layers = self.fully_connected(padding=_up_to(self.tail.window, x.shape[1:3]))
            nn.share_scope(self, layers)
            x = layers(x, dropout)
            return self.classifier(name="classifier")(x).mean(axis=(1, 2), keepdims=True)
        if self.tail.before:
            features = make_divisible(int(self.tail.before * max(1.0, self.width_multiplier)), 8)
            last = ConvBN(features, self.norm, activation=nn.relu6, dtype=self.dtype, name="last")
            x = last(x, batch_norm)
        x = ops.average_pool(x)  # [B, 1, 1, channels]
        if self.tail.after:
            x = hard_swish(Conv(self.tail.after, dtype=self.dtype, name="last")(x))
        return self.classifier(name="classifier")(dropout(x))


def _up_to(window: int, size: Sequence[int]) -> ops.Padding:
    """Padding that makes a side of at least `window`."""
    missing = (max(0, window - n) for n in size)
    return tuple((n // 2, n - n // 2) for n in missing)
