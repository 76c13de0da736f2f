"""Networks around a network: several heads on one, and several nets on the parts of one image."""

from collections.abc import Sequence

import flax.linen as nn
import jax


class Heads(nn.Module):
    """Further label maps from the same features ([FCN] Sec. 5: semantic and geometric classes).

    The network's classifiers have the channels of all heads, one after the other: a head's
    weights are its own all the same.

    Attributes:
      network: its logits are cut; its variables are this module's.
      heads: (name, channels) of each; the first is "logits".
    """

    network: nn.Module
    heads: Sequence[tuple[str, int]]

    def setup(self):
        nn.share_scope(self, self.network)

    def __call__(self, images: jax.Array, **mode) -> dict[str, jax.Array]:
        """images [B, H, W, C] → {"logits": [B, h, w, classes], name: ...}, one entry a head."""
        outputs, first = {}, 0
        scores = self.network(images, **mode)
        for name, channels in self.heads:
            outputs[name] = scores[..., first : first + channels]
            first += channels
        return outputs


class LateFusion(nn.Module):
    """A net for each group of an image's channels; their scores are summed ([FCN] Sec. 5, NYUDv2).

    Attributes:
      nets: one for each group.
      groups: channels of each, in order: (3, 3) is RGB and HHA.
    """

    nets: Sequence[nn.Module]
    groups: Sequence[int]

    def __call__(self, images: jax.Array, **mode) -> jax.Array | dict[str, jax.Array]:
        """images [B, H, W, sum of groups] → what a net gives, [B, h, w, classes].

        Raises:
          ValueError: for another number of channels.
        """
        if images.shape[-1] != sum(self.groups):
            raise ValueError(
                f"images of {images.shape[-1]} channels for channel_groups {tuple(self.groups)}"
            )
        scores, first = [], 0
        for net, channels in zip(self.nets, self.groups):
            scores.append(net(images[..., first : first + channels], **mode))
            first += channels
        return jax.tree.map(lambda *each: sum(each), *scores)
