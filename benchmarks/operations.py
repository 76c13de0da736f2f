"""Operations of deeplab_jax.ops against XLA's own form and torch's, alone and with gradients.

python benchmarks/operations.py [--only "depthwise"] [--dtype bfloat16] [--rounds 7]
"""

import argparse
import math
import os
from typing import NamedTuple

import contenders
import contest
from contest import Contender

COLUMNS = (
    "operation",
    "pass",
    "ours ms",
    "XLA's form ms",
    "torch ms",
    "ours / XLA's",
    "ours / torch",
    "share of matrix peak",
)


class Operation(NamedTuple):
    """kind: of `_ours`; shape: [B, H, W, C] in; features: channels out, or the size resized to."""

    kind: str
    shape: tuple[int, int, int, int]
    features: int = 0
    size: int = 3
    stride: int = 1
    rate: int = 1
    wrt: tuple[int, ...] = (0, 1)  # arrays that gradients are taken of

    def title(self) -> str:
        words = [self.kind]
        if self.kind in ("depthwise", "convolution", "max pool"):
            words.append(f"{self.size}x{self.size}")
        words.append(str(list(self.shape)))
        if self.features:
            words.append(f"→ {self.features}")
        words += [f"stride {self.stride}"] if self.stride > 1 else []
        words += [f"rate {self.rate}"] if self.rate > 1 else []
        return " ".join(words)

    def gigaflops(self, gradient: bool) -> float | None:
        """Arithmetic of the plain form of a product, taps in the padding included."""
        if self.kind != "convolution":
            return None
        batch, height, width, channels = self.shape
        outputs = batch * -(-height // self.stride) * -(-width // self.stride) * self.features
        passes = 1 + len(self.wrt) if gradient else 1
        return 2e-9 * passes * outputs * self.size**2 * channels


OPERATIONS = (
    *(Operation("depthwise", (4, 33, 33, 728), rate=rate) for rate in (1, 2)),
    Operation("depthwise", (1, 129, 129, 304)),
    Operation("depthwise", (2, 129, 129, 96), stride=2),
    *(Operation("convolution", (1, 33, 33, 2048), 256, rate=rate) for rate in (6, 12, 18)),
    *(Operation("convolution", (1, 65, 65, 2048), 256, rate=rate) for rate in (12, 24, 36)),
    *(Operation("convolution", (4, 33, 33, 256), 256, rate=rate) for rate in (1, 12)),
    Operation("convolution", (4, 33, 33, 728), 728, size=1),
    # A stem: nothing asks for the gradient of the image.
    Operation("convolution", (1, 513, 513, 3), 32, stride=2, wrt=(1,)),
    Operation("max pool", (2, 129, 129, 64), stride=2, wrt=(0,)),
    Operation("batch norm", (4, 33, 33, 728), wrt=(0, 1, 2)),
    Operation("upsampling", (1, 33, 33, 256), 129, wrt=(0,)),
    Operation("upsampling + cross-entropy", (1, 33, 33, 21), 513, wrt=(0,)),
)


def _arrays(operation: Operation) -> list:
    """What the operation is called with, in our layout."""
    import numpy as np

    rng = np.random.default_rng(0)
    size, channels = operation.size, operation.shape[-1]

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)

    x = normal(*operation.shape)
    if operation.kind == "depthwise":
        return [x, normal(size, size, channels) / 3]
    if operation.kind == "convolution":
        fan_in = size**2 * channels
        return [x, normal(size, size, channels, operation.features) / math.sqrt(fan_in)]
    if operation.kind == "batch norm":
        return [x, 1 + 0.1 * normal(channels), normal(channels)]
    if operation.kind == "upsampling + cross-entropy":
        return [x, contenders.labels(operation.features, operation.shape[0])]
    return [x]


def _cotangent(shape):
    """What gradients are fed with; 1 for a loss."""
    import numpy as np

    return np.random.default_rng(1).standard_normal(shape, np.float32) if shape else np.float32(1)


def _cast(operation: Operation, arrays: list) -> list[bool]:
    """Which arrays take the dtype asked for: logits and batch norm's vectors are always float32."""
    narrow = operation.kind != "upsampling + cross-entropy"
    return [narrow and array.ndim > 1 for array in arrays]


# --- jax -------------------------------------------------------------------------------------


def _ours(operation: Operation):
    from deeplab_jax import losses, ops

    _, _, out, size, stride, rate, _ = operation
    padding = ops.fixed_padding((size, size), rate)
    return {
        "depthwise": lambda x, k: ops.depthwise_conv2d(x, k, stride, rate, padding),
        "convolution": lambda x, k: ops.conv2d(x, k, stride, rate, padding),
        "max pool": lambda x: ops.max_pool(x, size, stride, padding),
        "batch norm": lambda x, scale, bias: ops.batch_norm(x, scale, bias, 1e-3)[0],
        "upsampling": lambda x: ops.resize_bilinear(x, (out, out), True),
        "upsampling + cross-entropy": lambda x, y: losses.softmax_cross_entropy(x, y)[0],
    }[operation.kind]


def _native(operation: Operation):
    """The same by one call of XLA's or JAX's, with the gradient derived from that."""
    import jax
    import jax.numpy as jnp
    import optax
    from jax import lax

    from deeplab_jax import ops

    _, shape, out, size, stride, rate, _ = operation
    padding = ops.fixed_padding((size, size), rate)

    def batch_norm(x, scale, bias):
        wide = x.astype(jnp.float32)
        mean, var = jnp.mean(wide, (0, 1, 2)), jnp.var(wide, (0, 1, 2))
        return ((wide - mean) * (scale * lax.rsqrt(var + 1e-3)) + bias).astype(x.dtype)

    def upsampling(x):
        scale = jnp.array([(out - 1) / (n - 1) for n in shape[1:3]])
        size = (shape[0], out, out, shape[3])
        return jax.image.scale_and_translate(
            x, size, (1, 2), scale, 0.5 - 0.5 * scale, "linear", antialias=False
        )

    def cross_entropy(x, labels):
        valid = labels != 255
        labels = jnp.where(valid, labels, 0).astype(jnp.int32)
        loss = optax.softmax_cross_entropy_with_integer_labels(upsampling(x), labels)
        return jnp.sum(jnp.where(valid, loss, 0))

    return {
        "depthwise": lambda x, k: ops.depthwise_native(x, k, stride, rate, padding),
        "convolution": lambda x, k: ops.dense_native(x, k, stride, rate, padding),
        "max pool": lambda x: ops.max_pool_native(x, size, stride, padding),
        "batch norm": batch_norm,
        "upsampling": upsampling,
        "upsampling + cross-entropy": cross_entropy,
    }[operation.kind]


def jax_operation(operation: Operation, native: bool, gradient: bool, dtype: str):
    import jax
    import jax.numpy as jnp
    import numpy as np

    function = (_native if native else _ours)(operation)
    arrays = _arrays(operation)
    arrays = [
        jnp.asarray(a, dtype if c else None) for a, c in zip(arrays, _cast(operation, arrays))
    ]
    y = jax.eval_shape(function, *arrays)
    dy = jnp.asarray(_cotangent(y.shape), y.dtype)

    @jax.jit
    def program(arrays, dy):
        if not gradient:
            return [function(*arrays)]

        def of(*chosen):
            return function(
                *{**dict(enumerate(arrays)), **dict(zip(operation.wrt, chosen))}.values()
            )

        y, vjp = jax.vjp(of, *(arrays[i] for i in operation.wrt))
        return [y, *vjp(dy)]

    norms = [float(np.linalg.norm(np.asarray(y, np.float64))) for y in program(arrays, dy)]
    return lambda: jax.block_until_ready(program(arrays, dy)), {"norms": norms}


# --- torch -----------------------------------------------------------------------------------


def _torch(operation: Operation):
    import torch.nn.functional as F

    _, shape, out, size, stride, rate, _ = operation
    pad = rate * (size // 2)

    def upsampling(x):
        return F.interpolate(x, (out, out), mode="bilinear", align_corners=True)

    def cross_entropy(x, labels):
        return F.cross_entropy(upsampling(x), labels, ignore_index=255, reduction="sum")

    return {
        "depthwise": lambda x, k: F.conv2d(x, k, None, stride, pad, rate, groups=shape[3]),
        "convolution": lambda x, k: F.conv2d(x, k, None, stride, pad, rate),
        "max pool": lambda x: F.max_pool2d(x, size, stride, pad),
        "batch norm": lambda x, scale, bias: F.batch_norm(
            x, None, None, scale, bias, training=True, eps=1e-3
        ),
        "upsampling": upsampling,
        "upsampling + cross-entropy": cross_entropy,
    }[operation.kind]


def torch_operation(operation: Operation, gradient: bool, dtype: str):
    """Eager, in channels_last."""
    import torch

    torch.set_num_threads(os.cpu_count())
    torch.backends.cudnn.benchmark = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    function, arrays = _torch(operation), _arrays(operation)
    tensors = []
    for i, (array, cast) in enumerate(zip(arrays, _cast(operation, arrays))):
        x = torch.from_numpy(array)
        if i == 0:  # [B, H, W, C] is channels_last already
            x = x.permute(0, 3, 1, 2)
        elif operation.kind == "depthwise":
            x = x.permute(2, 0, 1)[:, None].contiguous(memory_format=torch.channels_last)
        elif operation.kind == "convolution":
            x = x.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
        elif x.dtype == torch.uint8:
            x = x.long()
        tensors.append(x.to(device, getattr(torch, dtype) if cast else x.dtype))
    y = function(*tensors)
    dy = torch.ones_like(y)
    if y.ndim:
        dy = torch.from_numpy(_cotangent([y.shape[i] for i in (0, 2, 3, 1)]))
        dy = dy.permute(0, 3, 1, 2).to(device, y.dtype)
    chosen = [tensors[i].requires_grad_(gradient) for i in operation.wrt]

    def program():
        with torch.set_grad_enabled(gradient):
            y = function(*tensors)
        return [y, *(torch.autograd.grad(y, chosen, dy) if gradient else ())]

    def call():
        program()
        if device == "cuda":
            torch.cuda.synchronize()

    return call, {"norms": [float(y.detach().double().norm()) for y in program()]}


# --- the table -------------------------------------------------------------------------------


def row(operation: Operation, gradient: bool, args) -> tuple[list, dict]:
    options = {"operation": operation, "gradient": gradient, "dtype": args.dtype}
    entrants = [
        Contender("ours", jax_operation, options | {"native": False}),
        Contender("native", jax_operation, options | {"native": True}),
        Contender("torch", torch_operation, options),
    ]
    gigaflops = operation.gigaflops(gradient)
    if gigaflops:
        matmul = {"n": args.matrix, "dtype": args.dtype}
        entrants.append(Contender("matrix product", contenders.our_matmul, matmul))
    results = contest.contest(entrants, rounds=args.rounds, seconds=0.2)
    for name in ("native", "torch"):
        _compare(name, results["ours"].get("norms"), results[name].get("norms"), args.dtype)
    ms = {name: result.get("median_ms") for name, result in results.items()}

    def ratio(name):
        return ms["ours"] / ms[name] if ms["ours"] and ms[name] else None

    share = None
    if gigaflops and ms["ours"] and ms["matrix product"]:
        peak = 2e-9 * args.matrix**3 / ms["matrix product"]
        share = f"{100 * gigaflops / ms['ours'] / peak:.0f} %"
    times = [ms[name] for name in ("ours", "native", "torch")]
    what = "with gradients" if gradient else "forward"
    return [operation.title(), what, *times, ratio("native"), ratio("torch"), share], results


def _compare(name: str, ours, theirs, dtype: str) -> None:
    """Says so where the results are not of the same norm: then the times mean nothing."""
    tolerance = 1e-3 if dtype == "float32" else 2e-2
    if (
        ours
        and theirs
        and not all(math.isclose(a, b, rel_tol=tolerance) for a, b in zip(ours, theirs))
    ):
        print(f"  NOT ALIKE: norms {ours}, {name}'s {theirs}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="operations whose title contains this")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--matrix", type=int, default=2048, help="side of the matrix product")
    parser.add_argument("--name", default="operations", help="of the files in results/")
    args = parser.parse_args()

    rows, raw = [], []
    for operation in OPERATIONS:
        if args.only not in operation.title():
            continue
        for gradient in (False, True):
            cells = f"{operation.title()}, {'with gradients' if gradient else 'forward'}"
            print(cells, flush=True)
            cells, results = row(operation, gradient, args)
            rows.append(cells)
            raw.append({"operation": cells[0], "pass": cells[1]} | results)
    contest.write(args.name, f"Operations, {args.dtype}", COLUMNS, rows, raw)


if __name__ == "__main__":
    main()
