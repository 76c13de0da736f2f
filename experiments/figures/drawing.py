"""The figures, a function each: Subject → matplotlib's Figure; and the mathematics behind them."""

from functools import partial

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from scipy import ndimage

from deeplab_jax import metrics, models, ops
from deeplab_jax.errors import ConfigError
from deeplab_jax.field_of_view import fields_of_view as see
from deeplab_jax.predict import normalize, refine
from deeplab_jax.tally import Tally
from deeplab_jax.train import init_variables
from experiments.figures.subject import OKABE_ITO, Subject

ORANGE, SKY, GREEN, _, BLUE, VERMILION, *_ = OKABE_ITO
PALE = "#BBBBBB"
TRIMAP_SCENES, FIELD_SCENES = 40, 4
BLUR = 15  # px
WIDTHS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40)  # px


# --- the figures ------------------------------------------------------------------------------


def atrous_1d(subject: Subject) -> Figure:
    """Sparse features of a signal of half the length, and dense ones by atrous convolution."""
    figure = Figure((7.5, 5), layout="constrained")
    axes = figure.subplots(2, 2)
    nodes = 13
    for axis, step, title in (
        (axes[0, 0], 2, "(a) half the samples, rate 1"),
        (axes[0, 1], 1, "(b) all samples, rate 2"),
    ):
        places = np.arange(0, nodes, step)
        jacobian = jax.jacobian(lambda x, rate=3 - step: convolve_1d(x, np.ones(3), rate))
        reads = np.asarray(jacobian(np.zeros(len(places), np.float32))) != 0
        middle = len(places) // 2
        for out, seen in enumerate(reads):
            for tap in np.flatnonzero(seen):
                style = {"color": VERMILION, "lw": 2, "zorder": 2} if out == middle else {}
                axis.plot([places[tap], places[out]], [0, 1], **({"color": PALE, "lw": 1} | style))
        for height in (0, 1):
            lit = reads[middle] if height == 0 else np.arange(len(places)) == middle
            fill = np.where(lit, VERMILION, "white")
            axis.scatter(
                places, np.full(len(places), height), 60, c=fill, edgecolors="black", zorder=3
            )
        axis.set_title(title, fontsize=10)
        axis.set(xlim=(-0.6, nodes - 0.4), ylim=(-0.3, 1.3), xticks=[])
        axis.set_yticks([0, 1], ["input", "output"])
        axis.spines[:].set_visible(False)
    grey = _grey(subject.scene["image"])
    signal = grey[2 * len(grey) // 3]
    edges = np.array([-0.5, 0.0, 0.5])
    even = np.arange(0, len(signal), 2)
    sparse, dense = convolve_1d(signal[::2], edges, 1), convolve_1d(signal, edges, 2)
    axes[1, 0].plot(signal, color="black", lw=1)
    axes[1, 0].plot(even, signal[::2], "o", color=BLUE, ms=2.5)
    axes[1, 0].set_title("a row of the scene; dots: half its samples", fontsize=10)
    axes[1, 1].plot(dense, color=VERMILION, lw=1.2, label="all samples, rate 2")
    axes[1, 1].plot(even, sparse, "o", color=BLUE, ms=2.5, label="half, rate 1")
    axes[1, 1].set_title("its edges, by the kernel (-½, 0, ½)", fontsize=10)
    axes[1, 1].legend(frameon=False, fontsize=8)
    for axis in axes[1]:
        axis.set(xlabel="px", xlim=(2, len(signal) - 3))  # beyond the ends are zeros
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def atrous_2d(subject: Subject) -> Figure:
    """The scene at half size through a kernel, and whole through the same kernel at rate 2."""
    side = 97
    top, left = _busiest(subject.scene["label"], side)
    grey = _grey(subject.scene["image"])[top : top + side, left : left + side]
    kernel = gaussian_derivative(7)
    sparse, dense = convolve_2d(grey[::2, ::2], kernel, 1), convolve_2d(grey, kernel, 2)
    with_holes = np.full(grey.shape, np.nan, np.float32)
    with_holes[::2, ::2] = sparse
    y, x = np.unravel_index(np.abs(dense).argmax(), dense.shape)
    y, x = (int(np.clip(n - 12, 0, side - 24)) // 2 * 2 for n in (y, x))
    detail = np.s_[y : y + 24, x : x + 24]
    spread = np.zeros((13, 13), np.float32)
    spread[::2, ::2] = kernel
    figure, axes = _pictures(2, 4)
    high, highest = (float(np.abs(x).max()) for x in (dense, kernel))
    response = {"cmap": "PuOr", "vmin": -high, "vmax": high}
    for row, title, image, taps, answer, full in (
        (axes[0], "half size", grey[::2, ::2], kernel, sparse, with_holes),
        (axes[1], "full size", grey, spread, dense, dense),
    ):
        _show(row[0], image, title, cmap="gray", vmin=-0.5, vmax=0.5)
        _show(row[1], taps, "", cmap="PuOr", vmin=-highest, vmax=highest)
        _show(row[2], answer, "answer", **response)
        _show(row[3], full[detail], "detail, at full size", **response)
        row[3].set_facecolor(PALE)  # the holes
    axes[0, 1].set_title("7x7 kernel, rate 1", fontsize=9)
    axes[1, 1].set_title("the same, rate 2", fontsize=9)
    apart = np.abs(dense[::2, ::2] - sparse).max()
    figure.supxlabel(f"largest difference of the answers that both have: {apart:.1g}", fontsize=9)
    return figure


def fields_of_view(subject: Subject) -> Figure:
    """What each branch of the ASPP sees of the features, and with the backbone of the image."""
    config = subject.config
    if config.model.context != "aspp" or config.model.name not in ("v3", "v3plus"):
        raise ConfigError("fields_of_view wants a v3 or v3+ with an ASPP")
    scenes = [subject.source[i]["image"] for i in range(FIELD_SCENES)]
    height, width = np.min([scene.shape[:2] for scene in scenes], axis=0)
    scenes = np.stack([scene[:height, :width] for scene in scenes])
    # Twice as large, by their mirror images: rates that fit a scene's features just so would not
    # show.
    beside = [(0, 0), *((n // 2, n // 2) for n in scenes.shape[1:3]), (0, 0)]
    scenes = np.pad(scenes, beside, "reflect")
    images = normalize(scenes, config.data.normalization)
    stride = config.model.output_stride
    rates = models.head_rates(
        config.model.name, stride, config.model.atrous_rates, config.model.fc_kernel_size
    )
    branches = {"1x1": "aspp/conv1x1"}
    branches |= {f"rate {rate}": f"aspp/atrous{i}" for i, rate in enumerate(rates, start=1)}
    hues = dict(zip(branches, (VERMILION, ORANGE, SKY, GREEN, BLUE)))
    if config.model.image_pooling:
        branches |= {"image pooling": "aspp/image_pooling"}

    trained = subject.variables is not None
    variables = subject.variables if trained else init_variables(subject.module, config.seed)
    fields = partial(see, subject.module, variables, images)
    of_features = fields(list(branches.values()), "aspp")
    of_image = fields(["", *branches.values()])
    gradients = {"cmap": "magma", "vmin": 0, "vmax": 1}
    figure, axes = _pictures(2, len(branches) + 1)
    _show(axes[0, 0], scenes[0], "centres of the taps")
    _show(axes[1, 0], _smooth(of_image[""]), "the whole network", **gradients)
    for i, (title, layer) in enumerate(branches.items(), start=1):
        seen = of_features[layer] > 0
        _show(axes[0, i], seen, title, cmap="gray", vmin=0, vmax=1)
        _show(axes[1, i], _smooth(of_image[layer]), "", **gradients)
        if title in hues:
            y, x = (places * stride for places in np.nonzero(seen))
            axes[0, 0].scatter(x, y, 9, color=hues[title], edgecolors="black", linewidths=0.4)
            for spine in axes[0, i].spines.values():
                spine.set(color=hues[title], linewidth=2.5, visible=True)
    axes[0, 1].set_ylabel(f"of {seen.shape[0]}x{seen.shape[1]} features", fontsize=9)
    axes[1, 0].set_ylabel("of the image", fontsize=9)
    network = "a trained network" if trained else "an untrained network"
    figure.supxlabel(f"gradients of {network}, blurred by {BLUR} px", fontsize=9)
    return figure


def valid_weights(_: Subject) -> Figure:
    """How many of a 3x3 kernel's taps fall on a feature map of 65x65, and not on padding."""
    figure = Figure((6, 3), layout="constrained")
    axis = figure.subplots()
    rates = range(1, 97, 5)
    shares = np.array(
        [[(valid_taps(65, rate) == n).mean() for n in (1, 2, 4, 6, 9)] for rate in rates]
    )
    for share, n, hue in zip(shares.T, (1, 2, 4, 6, 9), (BLUE, PALE, SKY, GREEN, VERMILION)):
        axis.plot(rates, share, "o-", color=hue, ms=3, label=str(n))
    axis.set(xlabel="atrous rate", ylabel="share of the positions", ylim=(0, 1.02), xlim=(1, 96))
    axis.legend(title="valid weights", frameon=False, fontsize=8, title_fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def beliefs(subject: Subject) -> Figure:
    """Scores and beliefs of the scene's largest object, as the mean field goes on."""
    image, label = subject.scene["image"], subject.scene["label"]
    coarse = subject.coarse.probs(subject.scene) + 0.02  # the truth's are 0 and 1
    coarse /= coarse.sum(-1, keepdims=True)
    chosen = 1 + np.bincount(label[label != 255], minlength=len(subject.names))[1:].argmax()
    options = dict(subject.config.crf)
    maps = refine(image.astype(np.float32), coarse, label.shape, options, "beliefs")
    shown = sorted({1, 2, options["iterations"]})
    belief = {subject.coarse.title: coarse[..., chosen]}
    belief |= {f"iteration {i}": maps[i - 1, ..., chosen] for i in shown}
    figure, axes = _pictures(2, len(belief) + 1)
    _show(axes[0, 0], image, "image")
    _show(axes[1, 0], subject.palette[label], f"truth: {subject.names[chosen]}")
    for i, (title, q) in enumerate(belief.items(), start=1):
        score = np.log(np.maximum(q, 1e-6)) - np.log(np.maximum(1 - q, 1e-6))
        scores = _show(axes[0, i], score, title, cmap="PuOr_r", vmin=-8, vmax=8)
        shades = _show(axes[1, i], q, "", cmap="gray", vmin=0, vmax=1)
    figure.colorbar(scores, ax=axes[0, -1], label="score: log odds", fraction=0.05)
    figure.colorbar(shades, ax=axes[1, -1], label="belief", fraction=0.05)
    return figure


def trimaps(subject: Subject) -> Figure:
    """Bands around boundaries, and mean IoU within them."""
    figure = Figure((8.5, 3.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.35))
    image, label = subject.scene["image"], subject.scene["label"]
    tiles = left.subplots(2, 2)
    _show(tiles[0, 0], image, "image")
    _show(tiles[0, 1], subject.palette[label], "truth")
    distance = metrics.boundary_distance(label)
    for axis, width in zip(tiles[1], (2, 10)):
        band = (distance <= width)[..., None]
        _show(axis, np.where(band, image, 225), f"within {width} px")
    axis = right.subplots()
    for scorer, style in ((subject.fine, "o-"), (subject.coarse, "s--")):
        hue = VERMILION if scorer is subject.fine else BLUE
        tally = Tally(len(subject.names), 255, WIDTHS)
        for i in range(min(TRIMAP_SCENES, len(subject.source))):
            example = subject.source[i]
            tally.add(example["label"], scorer.probs(example).argmax(-1))
        ious = [100 * metrics.mean_iou(tally.bands[width]) for width in WIDTHS]
        axis.plot(WIDTHS, ious, style, color=hue, ms=4, label=scorer.title)
    axis.set(xlabel="trimap width, px", ylabel="mean IoU, %", title=f"{i + 1} scenes")
    axis.grid(color="#eeeeee")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    return figure


def decoder(subject: Subject) -> Figure:
    """The labels near boundaries, upsampled bilinearly and with what a decoder adds."""
    image, label = subject.scene["image"], subject.scene["label"]
    top, left = _busiest(label, 65)
    window = np.s_[top : top + 65, left : left + 65]
    found = [scorer.probs(subject.scene).argmax(-1) for scorer in (subject.coarse, subject.fine)]
    figure, axes = _pictures(2, 4)
    titles = ("image", "truth", subject.coarse.title, subject.fine.title)
    layers = (image, *(subject.palette[ids] for ids in (label, *found)))
    for i, (title, layer) in enumerate(zip(titles, layers)):
        _show(axes[0, i], layer, title)
        frame = Rectangle((left, top), 65, 65, fill=False, edgecolor="white", lw=2.5)
        axes[0, i].add_patch(frame)
        axes[0, i].add_patch(Rectangle((left, top), 65, 65, fill=False, edgecolor="black", lw=1))
        _show(axes[1, i], layer[window], "")
    wrong = [(ids != label)[window] & (label != 255)[window] for ids in found]
    for axis, pixels in zip(axes[1, 2:], wrong):
        axis.set_xlabel(f"{pixels.sum()} px wrong", fontsize=9)
    present = [c for c in np.unique(label) if c != 255]
    patches = [Patch(color=subject.palette[c] / 255, label=subject.names[c]) for c in present]
    figure.legend(handles=patches, loc="outside lower center", ncols=9, frameon=False, fontsize=8)
    return figure


FIGURES = {
    draw.__name__: draw
    for draw in (atrous_1d, atrous_2d, fields_of_view, valid_weights, beliefs, trimaps, decoder)
}


# --- the mathematics --------------------------------------------------------------------------


def convolve_1d(signal: jax.Array, kernel: np.ndarray, rate: int) -> jax.Array:
    """[N] → [N]: atrous convolution, [V2] Eq. 1, of zeros beyond the ends."""
    return convolve_2d(signal[None], kernel[None], rate)[0]


def convolve_2d(image: jax.Array, kernel: np.ndarray, rate: int) -> jax.Array:
    """[H, W] → [H, W] by `ops.conv2d`, as large as the image."""
    kernel = np.asarray(kernel, np.float32)
    padding = ops.fixed_padding(kernel.shape, rate)
    return ops.conv2d(image[None, ..., None], kernel[..., None, None], 1, rate, padding)[0, ..., 0]


def gaussian_derivative(size: int) -> np.ndarray:
    """[size, size] float32: the derivative downwards of a Gaussian of sigma size / 6."""
    place = np.arange(size) - (size - 1) / 2
    bell = np.exp(-(place**2) / (2 * (size / 6) ** 2))
    return np.outer(place * bell, bell).astype(np.float32) / np.abs(place * bell).sum() / bell.sum()


def _smooth(field: np.ndarray) -> np.ndarray:
    """A field of view without the pattern that strides leave in gradients, again in 0..1."""
    smooth = np.sqrt(ndimage.uniform_filter(field**2, BLUR))
    return smooth / smooth.max()


def _grey(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] uint8 → [H, W] float32 of mean 0, so that zeros beyond it are no edge."""
    grey = image.mean(-1, dtype=np.float32) / 255
    return grey - grey.mean()


def valid_taps(size: int, rate: int) -> np.ndarray:
    """[size, size] how many taps of a 3x3 kernel read inside a square of ones."""
    return np.round(convolve_2d(np.ones((size, size), np.float32), np.ones((3, 3)), rate))


def _busiest(label: np.ndarray, side: int) -> tuple[int, int]:
    """(top, left) of the window with the longest boundaries."""
    near = np.pad(metrics.boundary_distance(label) <= 1, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = near[side:, side:] - near[:-side, side:] - near[side:, :-side] + near[:-side, :-side]
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    return int(top), int(left)


# --- drawing -------------------------------------------------------------


def _pictures(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    """An empty figure for so many pictures."""
    figure = Figure((1.75 * columns, 1.85 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _show(axis, picture: np.ndarray, title: str, **options):
    axis.set_title(title, fontsize=9)
    axis.set(xticks=[], yticks=[])
    return axis.imshow(picture, interpolation="nearest", **options)
