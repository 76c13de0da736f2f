"""An evaluation as one HTML file that needs no network: figures, curves, and images to compare."""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from deeplab_jax import pictures
from deeplab_jax.data.labels import Labels


class Example(NamedTuple):
    """An image of the report.

    Attributes:
      name: of the image.
      iou: its own mean IoU, 0..1; NaN where nothing is labelled.
      layers: {title: [h, w, 3] uint8}, of one size; the image first.
    """

    name: str
    iou: float
    layers: dict[str, np.ndarray]


def page(
    figures: Mapping[str, Any],
    confusion: np.ndarray,
    labels: Labels,
    examples: Mapping[str, Sequence[Example]],
    settings: Mapping[str, Any],
) -> str:
    """The whole HTML file.

    Args:
      figures: of `evaluate`; shares in 0..1, a missing one is shown as "–".
      confusion: [C, C] counts, rows are the truth.
      labels: names and colours.
      examples: {heading: images}, each with a slider over its layers.
      settings: {what: value} of how this was measured.
    """
    totals = {
        key.replace("_", " ").replace("iou", "IoU"): percent(value)
        for key, value in figures.items()
        if isinstance(value, float)
    }
    words = {"None": "–", "True": "yes", "False": "no"}
    settings = {key: words.get(str(value), value) for key, value in settings.items()}
    curves = {"": figures, "before the CRF": figures.get("before_crf", {})}
    curves = {name: of["trimap_mean_iou"] for name, of in curves.items() if "trimap_mean_iou" in of}
    galleries = "".join(
        f"<h2>{text(heading.capitalize())}</h2>"
        f"<div class=gallery>{''.join(map(_slider, shown))}</div>"
        for heading, shown in examples.items()
        if shown
    )
    matrix = pictures.confusion_matrix(confusion, labels.names)
    return f"""<!doctype html>
<html lang=en><meta charset=utf-8><title>Evaluation</title>
<meta name=viewport content="width=device-width"><style>{_STYLE}</style>
<h1>mean IoU {percent(figures["mean_iou"])}</h1>
<div class=columns>{_table(totals)}{_table(settings)}</div>
<h2>Classes</h2>{_classes(figures, confusion, labels)}
{"<h2>Near boundaries</h2>" + _curve(curves) if curves else ""}
{_bounds(figures.get("upper_bounds"))}
<h2>Confusion</h2><p>Rows are the truth, in per cent of themselves.</p>
<img class=plain alt="confusion matrix" src="{_png(matrix)}">
{galleries}<script>{_SCRIPT}</script></html>
"""


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1e1e1e;max-width:1080px;margin:2em auto;
padding:0 1em}
table{border-collapse:collapse}th{text-align:left;font-weight:400;padding-right:1.5em}
td{text-align:right;font-variant-numeric:tabular-nums;padding-left:1em}
tr{border-bottom:1px solid #eee}
.columns{display:flex;flex-wrap:wrap;gap:1em 5em;align-items:start}
.swatch{display:inline-block;width:.9em;height:.9em;margin-right:.6em;border:1px solid #888}
.bar{width:16em;padding:0 0 0 1em}.bar i{display:block;height:.7em;background:#084081}
.gallery{display:flex;flex-wrap:wrap;gap:1.5em}figure{margin:0;width:330px}
.stack{position:relative}.stack img{display:block;width:100%}
.stack img+img{position:absolute;inset:0;opacity:0}
input{width:100%;margin:.4em 0 0}.titles{display:flex;justify-content:space-between;font-size:13px}
figcaption{overflow-wrap:anywhere}.plain{max-width:100%}
"""

# Layer k fades in as the slider goes from k - 1 to k.
_SCRIPT = """
for (const slider of document.querySelectorAll("input[type=range]")) {
  const layers = slider.closest("figure").querySelectorAll(".stack img");
  slider.addEventListener("input", () => layers.forEach((layer, k) => {
    if (k) layer.style.opacity = Math.min(1, Math.max(0, slider.value - k + 1));
  }));
  slider.dispatchEvent(new Event("input"));
}
"""


def _table(rows: Mapping[str, Any]) -> str:
    rows = [f"<tr><th>{text(key)}</th><td>{text(value)}</td></tr>" for key, value in rows.items()]
    return f"<table>{''.join(rows)}</table>"


def _classes(figures, confusion, labels: Labels) -> str:
    rows = []
    for label, (name, iou) in enumerate(figures["iou"].items()):
        truth = confusion[label].sum()
        accuracy = confusion[label, label] / truth if truth else math.nan
        colour = "#{:02x}{:02x}{:02x}".format(*labels.palette[label].tolist())
        width = 0 if math.isnan(iou) else 100 * iou
        rows.append(
            f"<tr><th><span class=swatch style='background:{colour}'></span>{text(name)}</th>"
            f"<td>{percent(iou)}</td><td>{percent(accuracy)}</td>"
            f"<td>{percent(truth / max(confusion.sum(), 1))}</td>"
            f"<td>{percent(figures['predicted_share'][name])}</td>"
            f"<td class=bar><i style='width:{width:.1f}%'></i></td></tr>"
        )
    head = "".join(f"<td>{title}</td>" for title in ("IoU", "accuracy", "labelled", "predicted"))
    return f"<table><tr><th></th>{head}<td></td></tr>{''.join(rows)}</table>"


def _bounds(figures: Mapping[str, float] | None) -> str:
    """What a perfect network of a stride would reach ([FCN] Appendix A)."""
    if not figures:
        return ""
    rows = {f"stride {stride}": percent(iou) for stride, iou in figures.items()}
    return f"<h2>Upper bounds</h2><p>Mean IoU of the truth, made so coarse.</p>{_table(rows)}"


def _curve(curves: Mapping[str, Mapping[str, float]]) -> str:
    """Mean IoU within some px of a boundary ([V2] Fig. 10): an SVG."""
    widths = [float(width) for width in next(iter(curves.values()))]
    values = [v for curve in curves.values() for v in curve.values() if not math.isnan(v)]
    low = 10 * math.floor(10 * min(values, default=0))
    high = max(10 * math.ceil(10 * max(values, default=1)), low + 10)

    def x(width):
        return 50 + 480 * width / max(widths)

    def y(percent):
        return 250 - 220 * (percent - low) / (high - low)

    parts = []
    for tick in range(low, high + 1, 10):
        parts.append(f"<path d='M50 {y(tick):.1f}H530' stroke='#ddd'/>")
        parts.append(f"<text x=42 y={y(tick) + 4:.1f} text-anchor=end>{tick} %</text>")
    shown = [w for i, w in enumerate(widths) if not i or x(w) - x(widths[i - 1]) > 22]
    parts += [f"<text x={x(w):.1f} y=270 text-anchor=middle>{w:g}</text>" for w in shown]
    for (name, curve), colour in zip(curves.items(), ("#084081", "#b35806")):
        points = [(x(float(w)), y(100 * v)) for w, v in curve.items() if not math.isnan(v)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f"<polyline points='{path}' fill=none stroke='{colour}' stroke-width=2 />")
        parts += [f"<circle cx={a:.1f} cy={b:.1f} r=3 fill='{colour}'/>" for a, b in points]
        if name and points:
            a, b = points[-1]
            parts.append(
                f"<text x={a:.1f} y={b - 8:.1f} text-anchor=end fill='{colour}'>{name}</text>"
            )
    axis = "<text x=290 y=288 text-anchor=middle>px from a boundary, at most</text>"
    return f"<svg width=560 height=295 font-size=13 role=img>{''.join(parts)}{axis}</svg>"


def _slider(example: Example) -> str:
    layers = "".join(
        f"<img alt='{text(title)}' src='{_jpeg(layer) if i == 0 else _png(layer)}'>"
        for i, (title, layer) in enumerate(example.layers.items())
    )
    titles = "".join(f"<span>{text(title)}</span>" for title in example.layers)
    last = len(example.layers) - 1
    return (
        f"<figure><div class=stack>{layers}</div>"
        f"<input type=range min=0 max={last} step=0.01 value={min(2, last)} "
        f"aria-label='what is shown of {text(example.name)}'>"
        f"<div class=titles>{titles}</div>"
        f"<figcaption>{text(example.name)}, mean IoU {percent(example.iou)}</figcaption></figure>"
    )


def text(value: Any) -> str:
    """Names come from users' files: as text, never as markup."""
    return html.escape("".join(c for c in str(value) if c.isprintable()), quote=True)


def percent(share: float | None) -> str:
    """A share of 0..1 for people; "–" where there is none."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.2f} %"


def _png(image: np.ndarray | Image.Image) -> str:
    return _embedded("png", pictures.png(image))


def _jpeg(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=88)
    return _embedded("jpeg", buffer.getvalue())


def _embedded(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
