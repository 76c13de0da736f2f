"""Our own variables by their paths, as `--mode=import` writes them to model.safetensors."""

import json
from pathlib import Path
from typing import Any

from deeplab_jax.errors import WeightsError
from deeplab_jax.importers import readers, vgg
from deeplab_jax.importers.table import Layout, Rule

HEADER = "deeplab_jax"  # its entry in the file's header describes the model, as JSON


def description(path: Path | None) -> dict[str, Any]:
    """{"model": keywords of `models.build`, "data": {"normalization": ...}, "source": ...}.

    Raises:
      WeightsError: if the file does not carry it.
    """
    try:
        found = json.loads(readers.metadata(path)[HEADER]) if path else None
        model = {key: _tuple(value) for key, value in found["model"].items()}
        if not {"name", "backbone", "num_classes"} <= model.keys():
            raise KeyError("num_classes")
        if ":" in model["backbone"]:  # models.build would import it, and a file must run nothing
            raise WeightsError(
                f"{path}: its header names {model['backbone']!r}, a backbone outside this package; "
                "build it with a configuration that has that model.backbone, if you trust it"
            )
        normalization, source = found["data"]["normalization"], str(found["source"])
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path or 'weights'}: variables of our own that do not say of which model; build it "
            "with the configuration they were trained with"
        ) from error
    return {"model": model, "data": {"normalization": normalization}, "source": source}


def _tuple(value):
    return tuple(value) if isinstance(value, list) else value


LAYOUT = Layout(
    name="deeplab_jax",
    signature=(r"params/(nets_\d+/)?backbone/.*",),
    rules=(Rule(r"((?:params|batch_stats)/.*)", r"\1"),),
    infer=None,
    normalization="zero_mean",
)

# A classifier (`models.build(name="classifier")`), from which any network starts as from a trunk.
CLASSIFIER = Layout(
    name="deeplab_jax classifier, as a trunk",
    signature=(r"params/classifier/kernel", r"params/backbone/.*"),
    rules=(
        Rule(r"((?:params|batch_stats)/backbone/.*)", r"\1"),
        Rule(
            r"((?:params|batch_stats)/(?:last|classifier)/.*)",
            r"\1",
            why="the classifier's last layers",
            optional=True,
        ),
        *vgg.fully_connected(
            6, "params/fc6", "/kernel", "/bias", vgg.thinned_fc6, (None,) * 4, channels=None
        ),
        *vgg.fully_connected(
            7, "params/fc7", "/kernel", "/bias", vgg.thinned_fc7, (1, 1, None, None), channels=None
        ),
    ),
    infer=None,
    normalization="zero_mean",
    trunk=True,
)
