"""What is timed: one call of ours and of the torch peers, set up inside the contender's process.

Every maker returns (call, facts); the call returns when its result is there. Libraries are
imported inside, so that a contender's process holds its own alone. The networks, by case name:
"v3plus xception_65 16" is name, backbone, output stride.
"""

import os
from typing import Any

CLASSES = 21
# Keywords of build() that differ from its defaults: v3 has the dense ASPP of [V3]; MobileNetV2's
# has no atrous branches in the official code.
KEYWORDS: dict[tuple[str, str], dict[str, Any]] = {
    ("v3", "resnet_50"): {"separable": False},
    ("v3", "resnet_101"): {"separable": False},
    ("v3", "mobilenet_v2"): {"atrous_rates": None},
}


def keywords(case: str) -> dict[str, Any]:
    """Keywords of `build`, ours and the peers', of "v3plus xception_65 16"."""
    name, backbone, output_stride = case.split()
    common = {"name": name, "backbone": backbone, "num_classes": CLASSES}
    return common | {"output_stride": int(output_stride)} | KEYWORDS.get((name, backbone), {})


def gigaflops(case: str, size: int, batch: int) -> float:
    """Arithmetic of one inference, two operations a multiply-add, upsampling left out."""
    from deeplab_jax import counting, models

    module = models.build(**keywords(case))
    return 2e-9 * batch * counting.count(module, (size, size))["multiply_adds"]


def _batch(size: int, batch: int):
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
    # Blocks of one class, some of them void, as masks have; noise would be unlike any.
    cells = rng.integers(0, CLASSES + 1, (batch, -(-size // 32), -(-size // 32)))
    labels = cells.repeat(32, axis=1).repeat(32, axis=2)[:, :size, :size]
    return images, np.where(labels == CLASSES, 255, labels).astype(np.uint8)


# --- ours ------------------------------------------------------------------------------------


def our_matmul(n: int, dtype: str):
    """The machine's measured limit: an n x n matrix product."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((n, n), dtype)
    product = jax.jit(lambda a: a @ a)
    return lambda: product(a).block_until_ready(), {}


def our_forward(case: str, size: int, batch: int, dtype: str = "float32"):
    """Images on the device → label maps at their size."""
    import jax

    from deeplab_jax import models, predict, train

    module = models.build(**keywords(case), dtype=dtype)
    variables = train.init_variables(module, 0)
    images = jax.device_put(_batch(size, batch)[0])

    def call():
        options = {"normalization": "zero_mean", "align_corners": True}
        return predict.label_maps(module, variables, images, **options).block_until_ready()

    return call, {}


def our_step(case: str, size: int, batch: int, dtype: str = "float32", remat: str = ""):
    """One training step on a batch that is on the device."""
    import jax
    import jax.numpy as jnp

    from deeplab_jax import models, optim, runtime, train

    model = keywords(case) | {"dtype": dtype, "align_corners": True}
    config = {
        "seed": 0,
        "model": model,
        "data": {"normalization": "zero_mean", "ignore_label": 255},
        "train": {"batch_size": batch, "accumulation_steps": 1, "fine_tune_batch_norm": True},
        "optim": {
            "momentum": 0.9,
            "weight_decay": 4e-5,
            "last_layer_gradient_multiplier": 1.0,
            "bias_gradient_multiplier": 1.0,
        },
    }
    module = models.build(**model)
    variables = train.init_variables(module, 0)
    schedule = optim.poly_schedule(0.007, 30_000, 0.9)
    optimizer = optim.sgd(variables["params"], schedule, config["optim"])
    mesh = runtime.data_mesh()
    state = train.TrainState(
        step=jnp.zeros((), jnp.int32),
        opt_state=optimizer.init(variables["params"]),
        **variables,
    )
    step = train.make_step(module, optimizer, schedule, config, mesh)
    images, labels = _batch(size, batch)
    data = runtime.shard_batch({"image": images, "label": labels}, mesh)

    def call():
        nonlocal state
        state, figures = step(state, data)
        jax.block_until_ready(figures)

    return call, {}


# --- torch -----------------------------------------------------------------------------------

# {mode: (channels_last, compiled, weights frozen into the program and batch norm folded)}
TORCH_MODES = {
    "eager": (False, False, False),
    "channels_last": (True, False, False),
    "compile": (True, True, False),
    "compile_freeze": (True, True, True),
}


def _torch(case: str, size: int, batch: int, mode: str, dtype: str, train: bool):
    import torch
    import torch_peers

    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())
    torch.backends.cudnn.benchmark = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    channels_last, compiled, freeze = TORCH_MODES[mode]
    format_ = torch.channels_last if channels_last else torch.contiguous_format
    module = torch_peers.build(**keywords(case)).train(train)
    module = module.to(device=device, memory_format=format_)
    images, labels = _batch(size, batch)
    images = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
    images = images.contiguous(memory_format=format_)
    labels = torch.from_numpy(labels).to(device).long()
    if freeze:
        import torch._inductor.config

        torch._inductor.config.freezing = True
    cast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
    compile_ = torch.compile if compiled else lambda function: function
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    return module, images, labels, cast, compile_, wait


def torch_forward(case: str, size: int, batch: int, mode: str, dtype: str = "float32"):
    """As `our_forward`."""
    import torch
    import torch.nn.functional as F

    module, images, _, cast, compile_, wait = _torch(case, size, batch, mode, dtype, train=False)

    @compile_
    def labels(images):
        logits = module(images.float() * (2 / 255) - 1)
        logits = F.interpolate(logits.float(), (size, size), mode="bilinear", align_corners=True)
        return logits.argmax(1)

    def call():
        with torch.no_grad(), cast:
            labels(images)
        wait()

    return call, {}


def torch_step(case: str, size: int, batch: int, mode: str, dtype: str = "float32"):
    """As `our_step`."""
    import torch
    import torch.nn.functional as F

    module, images, labels, cast, compile_, wait = _torch(case, size, batch, mode, dtype, True)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.007, momentum=0.9, weight_decay=4e-5)

    @compile_
    def loss_of(images, labels):
        logits = module(images.float() * (2 / 255) - 1)
        logits = F.interpolate(logits.float(), (size, size), mode="bilinear", align_corners=True)
        return F.cross_entropy(logits, labels, ignore_index=255)

    def call():
        optimizer.zero_grad(set_to_none=True)
        with cast:
            loss = loss_of(images, labels)
        loss.backward()
        optimizer.step()
        wait()

    return call, {}
