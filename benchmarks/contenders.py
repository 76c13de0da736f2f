"""What is timed: one call of ours and of the torch peers, set up inside the contender's process.

Every maker returns (call, facts); the call returns when its result is there. Libraries are
imported inside, so that a contender's process holds its own alone. The networks, by case name:
"v3plus xception_65 16" is name, backbone, output stride.
"""

import functools
import os
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "v3plus.py"
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


def labels(size: int, batch: int):
    """Blocks of one class, some of them void, as masks have; noise would be unlike any."""
    import numpy as np

    rng = np.random.default_rng(1)
    cells = rng.integers(0, CLASSES + 1, (batch, -(-size // 32), -(-size // 32)))
    ids = cells.repeat(32, axis=1).repeat(32, axis=2)[:, :size, :size]
    return np.where(ids == CLASSES, 255, ids).astype(np.uint8)


def _batch(size: int, batch: int):
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (batch, size, size, 3), np.uint8), labels(size, batch)


# --- ours ------------------------------------------------------------------------------------


def our_matmul(n: int, dtype: str):
    """The machine's measured limit: an n x n matrix product."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((n, n), dtype)
    product = jax.jit(lambda a: a @ a)
    return lambda: product(a).block_until_ready(), {}


def our_forward(case: str, size: int, batch: int, dtype: str = "float32", frozen: bool = True):
    """Images on the device → label maps at their size; frozen as `predict.freeze` does."""
    import jax

    from deeplab_jax import models, predict, train

    module = models.build(**keywords(case), dtype=dtype)
    variables = train.init_variables(module, 0)
    images = jax.device_put(_batch(size, batch)[0])
    options = {"normalization": "zero_mean", "align_corners": True}
    if frozen:
        labels = predict.freeze(module, variables, **options)
    else:
        labels = functools.partial(predict.label_maps, module, variables, **options)
    return lambda: labels(images).block_until_ready(), {}


def our_stream(megabytes: int):
    """The machine's measured memory bandwidth: one addition over an array far beyond its caches."""
    import jax
    import jax.numpy as jnp

    x = jnp.zeros(megabytes * 250_000, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    return lambda: add(x).block_until_ready(), {"bytes": 2 * x.nbytes}  # read and written


def our_training(
    case: str,
    size: int,
    batch: int,
    dtype: str = "float32",
    remat: bool = False,
    groups: int = 1,
    height: int = 1,
):
    """(jitted training step, its state, its batch): step(state, batch) → (state, figures).

    Over all devices; `groups` of batch norm, `height` devices that share an image.
    """
    import jax

    from deeplab_jax import config as configuration
    from deeplab_jax import models, runtime, train

    model = keywords(case) | {"dtype": dtype, "align_corners": True, "remat": remat}
    model["batch_norm_groups"] = groups
    # One rate for all, as torch has it.
    overrides = {"train.batch_size": batch, "optim.bias_gradient_multiplier": 1.0}
    config = configuration.load(f"{CONFIG}:voc", overrides).to_dict()
    config["model"] = model
    module = models.build(**model)
    variables = train.init_variables(module, 0)
    mesh = runtime.data_mesh(height)
    step, state = train.begin(module, variables, config, mesh)
    images, masks = _batch(size, batch)
    data = runtime.shard_batch({"image": images, "label": masks}, mesh)
    return step, jax.block_until_ready(state), data


def our_step(devices: int | None = None, **options):
    """One step of `our_training(**options)`, its batch on the device, or on so many CPU devices."""
    import jax

    if devices is not None:
        jax.config.update("jax_num_cpu_devices", devices)
    step, state, data = our_training(**options)

    def call():
        nonlocal state
        state, figures = step(state, data)
        jax.block_until_ready(figures)

    return call, {}


def save_variables(case: str, path: str) -> None:
    """Writes freshly initialised variables of ours to an .npz, for both sides to start from."""
    import numpy as np
    from flax.traverse_util import flatten_dict

    from deeplab_jax import models, train

    variables = train.init_variables(models.build(**keywords(case)), 0)
    np.savez(path, **flatten_dict(variables, sep="/"))


def our_prediction(case: str, variables: str, inputs: str, output: str, size: int):
    """Image files → label PNGs in OUTPUT/labels, as the command line's predict mode writes them."""
    from pathlib import Path

    import jax
    import numpy as np
    from flax.traverse_util import unflatten_dict

    from deeplab_jax import models, predict_files
    from deeplab_jax.data import pipeline
    from deeplab_jax.data.inputs import find_images
    from deeplab_jax.models.folding import fold_batch_norm

    module, labels = models.build(**keywords(case)), pipeline.usual_labels(CLASSES)
    variables = jax.device_put(unflatten_dict(dict(np.load(variables)), sep="/"))
    variables = fold_batch_norm(module, variables)
    targets = predict_files.targets(find_images(inputs), Path(output), ("labels",))
    options = dict.fromkeys(("resize", "tile_size", "crf", "raw_ids")) | {"crop_size": (size, size)}

    def call():
        predict_files.predict_files(module, variables, targets, Path(output), labels, options)

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


def _torch_labels(module, size: int):
    """images [B, 3, size, size] in 0..255 → class ids."""
    import torch.nn.functional as F

    def labels(images):
        logits = module(images.float() * (2 / 255) - 1)
        logits = F.interpolate(logits.float(), (size, size), mode="bilinear", align_corners=True)
        return logits.argmax(1)

    return labels


def torch_forward(case: str, size: int, batch: int, mode: str, dtype: str = "float32"):
    """As `our_forward`."""
    import torch

    module, images, _, cast, compile_, wait = _torch(case, size, batch, mode, dtype, train=False)
    labels = compile_(_torch_labels(module, size))

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


def torch_prediction(case: str, variables: str, inputs: str, output: str, size: int, mode: str):
    """As `our_prediction`, with PIL and numpy at both ends."""
    from pathlib import Path

    import numpy as np
    import torch
    import torch_peers
    from PIL import Image

    from deeplab_jax.data import labels

    module, images, _, cast, compile_, _ = _torch(case, size, 1, mode, "float32", train=False)
    torch_peers.load_flax(module, dict(np.load(variables)))
    device, program = images.device, compile_(_torch_labels(module, size))
    paths, output = sorted(Path(inputs).iterdir()), Path(output)
    output.mkdir(exist_ok=True)
    palette = labels.voc_palette().tobytes()

    def call():
        for path in paths:
            image = np.asarray(Image.open(path).convert("RGB"))
            height, width = image.shape[:2]
            padded = np.full((1, size, size, 3), 127.5, np.float32)  # the mean pixel
            padded[0, :height, :width] = image
            with torch.no_grad(), cast:
                x = torch.from_numpy(padded).to(device).permute(0, 3, 1, 2)
                pred = program(x).to(torch.uint8)[0, :height, :width].cpu().numpy()
            picture = Image.fromarray(pred)
            picture.putpalette(palette)
            picture.save(output / f"{path.stem}.png")

    return call, {}


# --- the CRF ---------------------------------------------------------------------------------


def crf_probabilities(image, probs, method: str, setting: dict):
    """`mean_field` once: [H, W, C] float32."""
    import jax
    import numpy as np

    from deeplab_jax import crf

    program = jax.jit(lambda i, p: crf.mean_field(i, p, method=method, **setting))
    return np.asarray(program(image, probs))


def _against(q, truth) -> dict[str, float]:
    """Share of pixels of another label than the exact one, and the mean total variation."""
    import numpy as np

    return {
        "labels_off": float(np.mean(q.argmax(-1) != truth.argmax(-1))),
        "distance": float(0.5 * np.abs(q - truth).sum(-1).mean()),
    }


def our_crf(image, probs, setting: dict, method: str, truth):
    """An image and its probabilities on the device → the CRF's."""
    import jax
    import numpy as np

    from deeplab_jax import crf

    program = jax.jit(lambda i, p: crf.mean_field(i, p, method=method, **setting))
    image, probs = jax.device_put((image, probs))
    facts = {}

    def call():
        q = program(image, probs).block_until_ready()
        if truth is not None and not facts:
            facts.update(_against(np.asarray(q), truth))

    return call, facts


def pydensecrf(image, probs, setting: dict, truth):
    """The same by the permutohedral lattice, its set-up for the image included."""
    import numpy as np
    from pydensecrf.densecrf import DenseCRF2D

    height, width, classes = probs.shape
    image = np.array(image)  # writable, as it wants its arrays
    unary = np.ascontiguousarray(-np.log(np.maximum(probs, 1e-20)).reshape(-1, classes).T)
    facts = {}

    def call():
        net = DenseCRF2D(width, height, classes)
        net.setUnaryEnergy(unary)
        net.addPairwiseGaussian(sxy=setting["sigma_gamma"], compat=setting["w2"])
        net.addPairwiseBilateral(
            sxy=setting["sigma_alpha"],
            srgb=setting["sigma_beta"],
            rgbim=image,
            compat=setting["w1"],
        )
        q = np.array(net.inference(setting["iterations"]))
        if truth is not None and not facts:
            facts.update(_against(q.T.reshape(probs.shape), truth))

    return call, facts
