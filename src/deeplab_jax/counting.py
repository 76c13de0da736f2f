"""Parameters and multiply-adds of a model, layer by layer, as the papers count them.

Nothing is computed: the module is traced with shapes, and `ops` reports every convolution it
meets, whatever that is lowered to (a 1x1 convolution is a matrix product, a depthwise one on CPU
a sum of shifted products).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from deeplab_jax import ops

CONVENTIONS = ("exact", "tf_space_to_batch")
# What `table` may sum over: so many leading names of a layer's path, None is the whole path.
GROUPINGS = {"layer": None, "block": 2, "part": 1}


def count(
    module: nn.Module, size: tuple[int, int], convention: str = "exact", channels: int = 3
) -> dict:
    """Counts a module on one image.

    A convolution costs output height * output width * kernel height * kernel width * input
    channels / groups * output channels multiply-adds; nothing else is counted. Tables 3 and 5 of
    [V3+] and the model zoo counted "tf_space_to_batch": TensorFlow ran a dense atrous convolution
    on a grid cut into rate x rate parts, each padded to equal size, so both sides of its output
    are rounded up to multiples of its rate. Depthwise convolutions had their rate in the kernel.

    Args:
      module: takes images [B, H, W, C] and the keyword `train`.
      size: (height, width) of the image.
      convention: "exact" or "tf_space_to_batch".
      channels: of the image.

    Returns:
      {"parameters": trainable scalars, "statistics": scalars of batch norm's running statistics,
      "multiply_adds": of all convolutions, "layers": one dict a convolution in order of
      execution}. A layer has "name" (the module's path), "input" and "output" (height, width,
      channels), "kernel" (height, width), "stride", "rate", "groups", "parameters" and
      "multiply_adds". Its parameters are all of its module's (kernel, bias, batch norm); where a
      module has several convolutions, or runs several times, the first carries them.

    Raises:
      ValueError: for an unknown convention.
    """
    if convention not in CONVENTIONS:
        raise ValueError(
            f"convention {convention!r} is not one of {', '.join(map(repr, CONVENTIONS))}"
        )
    images = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), images)
    parameters = {
        path: leaf.size for path, leaf in flatten_dict(variables.get("params", {})).items()
    }
    layers = _layers(module, variables, images)
    owned = _owned(parameters, {path for path, _ in layers})
    rows = [
        {
            "name": "/".join(path),
            "input": conv.x[1:],
            "output": conv.y[1:],
            "kernel": conv.kernel[:2],
            "stride": conv.stride,
            "rate": conv.rate,
            "groups": conv.groups,
            "parameters": owned.pop(path, 0),
            "multiply_adds": _multiply_adds(conv, convention),
        }
        for path, conv in layers
    ]
    return {
        "parameters": sum(parameters.values()),
        "statistics": sum(x.size for x in jax.tree.leaves(variables.get("batch_stats", {}))),
        "multiply_adds": sum(row["multiply_adds"] for row in rows),
        "layers": rows,
    }


def count_scales(
    module: nn.Module,
    size: tuple[int, int],
    scales: Sequence[float] = (1.0,),
    flips: bool = False,
    convention: str = "exact",
    align_corners: bool = True,
    channels: int = 3,
) -> int:
    """Multiply-adds of an image seen at several scales, and mirrored at each with `flips`."""
    sizes = [ops.scaled_size(size, scale, align_corners) for scale in scales]
    total = sum(count(module, at, convention, channels)["multiply_adds"] for at in sizes)
    return total * (2 if flips else 1)


def _layers(module, variables, images) -> list[tuple[tuple[str, ...], ops.Convolution]]:
    """(path of the module, convolution) of every convolution of a forward pass, in order."""
    layers, paths = [], []

    def keep_path(call, args, kwargs, context):
        paths.append(context.module.path)
        try:
            return call(*args, **kwargs)
        finally:
            paths.pop()

    # disable_jit: a jitted function met again with the same shapes would be taken from its cache,
    # and its convolutions not be seen.
    with (
        jax.disable_jit(),
        nn.intercept_methods(keep_path),
        ops.observing(lambda conv: layers.append((paths[-1], conv))),
    ):
        jax.eval_shape(lambda v, x: module.apply(v, x, train=False), variables, images)
    return layers


def _owned(parameters: dict[tuple[str, ...], int], paths: set[tuple[str, ...]]) -> dict:
    """{layer's path: its parameters}: each leaf goes to the innermost layer around it."""
    owned = dict.fromkeys(paths, 0)
    for leaf, size in parameters.items():
        around = [leaf[:n] for n in range(len(leaf)) if leaf[:n] in owned]
        if around:
            owned[around[-1]] += size
    return owned


def _multiply_adds(conv: ops.Convolution, convention: str) -> int:
    batch, height, width, features = conv.y
    if convention == "tf_space_to_batch" and conv.groups == 1:
        rows, columns = ops.pair(conv.rate)
        height, width = -(-height // rows) * rows, -(-width // columns) * columns
    taps = conv.kernel[0] * conv.kernel[1] * (conv.x[-1] // conv.groups)
    return batch * height * width * taps * features


# --- for people ------------------------------------------------------------------------------


def table(result: dict, by: str = "layer") -> str:
    """What `count` returned, as aligned text with the totals in the last lines.

    Args:
      result: of `count`.
      by: "layer", a line a convolution; "block" or "part", a line a group of layers whose paths
        share their first two names or their first ("backbone", "aspp", "decoder", "logits").

    Raises:
      ValueError: for an unknown grouping.
    """
    if by not in GROUPINGS:
        raise ValueError(f"by {by!r} is not one of {', '.join(map(repr, GROUPINGS))}")
    total = result["multiply_adds"]
    if by == "layer":
        header = [by, "input", "output", "kernel", "stride", "rate", "groups"]
        lines = [
            [
                row["name"],
                *(_times(row[key]) for key in header[1:6]),
                str(row["groups"]),
                row["parameters"],
                row["multiply_adds"],
            ]
            for row in result["layers"]
        ]
    else:
        header, groups = [by, "convolutions"], {}
        for row in result["layers"]:
            name = "/".join(row["name"].split("/")[: GROUPINGS[by]])
            group = groups.setdefault(name, [name, 0, 0, 0])
            group[1:] = group[1] + 1, group[2] + row["parameters"], group[3] + row["multiply_adds"]
        lines = [[name, str(rows), *sums] for name, rows, *sums in groups.values()]
    blank = [""] * (len(header) - 1)
    rest = result["parameters"] - sum(parameters for *_, parameters, _ in lines)
    if rest:
        lines.append(["(no convolution)", *blank, rest, 0])
    lines.append(["total", *blank, result["parameters"], total])
    cells = [[*header, "parameters", "multiply-adds", "share"]]
    for *names, parameters, cost in lines:
        cells.append([*names, f"{parameters:,}", f"{cost:,}", f"{cost / max(total, 1):.1%}"])
    first, *widths = (max(map(len, column)) for column in zip(*cells))
    text = [
        "  ".join([name.ljust(first), *(cell.rjust(w) for cell, w in zip(line, widths))])
        for name, *line in cells
    ]
    return "\n".join([*text, f"and {result['statistics']:,} running statistics of batch norm"])


def _times(sizes: int | Sequence[int]) -> str:
    return str(sizes) if isinstance(sizes, int) else "x".join(map(str, sizes))
