"""Foreign weights in, weights of ours out: a checkpoint, a file to share, and their description."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from deeplab_jax import checkpoint, counting, importers, lock, models, report, runtime
from deeplab_jax.data.transforms import NORMALIZATIONS
from deeplab_jax.errors import ConfigError, WeightsError
from deeplab_jax.importers import WEIGHTS
from deeplab_jax.output import sha256

CONFIG, CARD, MAPPING = "config.json", "README.md", "mapping.txt"


def convert(source: Path, folder: Path, model: dict[str, Any] | None, normalization: str | None):
    """Imports a weight file into `folder`.

    Writes checkpoints/0 (Orbax, to train or evaluate from), model.safetensors (the variables by
    their paths, the model's keywords in its header), config.json, README.md (the model card) and
    mapping.txt (our path, foreign name).

    Args:
      source: a weight file or TensorFlow checkpoint.
      folder: created if need be; a folder that holds checkpoints is refused.
      model: keywords of `models.build`; None infers them from the file.
      normalization: of the images; None is the source's.

    Raises:
      WeightsError: the file cannot be read, belongs to no known layout or is a backbone alone.
      ConfigError: the folder is taken, or the keywords are impossible.
    """
    taken = [
        n for n in (WEIGHTS, CONFIG, CARD, MAPPING, checkpoint.FOLDER) if (folder / n).exists()
    ]
    if taken:
        raise ConfigError(f"{folder} holds {', '.join(taken)} already; choose another --output")
    found = importers.identify(source)
    runtime.say(f"{source}: {found.layout}")
    if found.trunk:
        raise WeightsError(
            f"{source}: a backbone alone, nothing to evaluate; train from it with "
            f"--config.init_from={source}. {found.note}".strip()
        )
    keywords = dict(found.model if model is None else model)
    data = {"normalization": normalization or found.normalization}
    try:
        module = models.build(**keywords)
    except (TypeError, ValueError) as error:
        if model is None:
            raise WeightsError(f"{source}: {found.layout}, but {error}") from error
        raise ConfigError(f"config.model: {error}") from error
    if data["normalization"] not in NORMALIZATIONS:
        raise WeightsError(f"{source}: its normalization {data['normalization']!r} is unknown")
    target = jax.eval_shape(
        lambda: module.init(jax.random.key(0), np.zeros((1, 65, 65, 3), np.float32))
    )
    mapping: dict[str, str] = {}
    variables = importers.load(source, target, log=runtime.say, mapping=mapping)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(variables)):
        raise WeightsError(
            f"{source}: has another number of classes than model.num_classes="
            f"{keywords['num_classes']}; import it as it is, then train from it with "
            "--config.init_from"
        )
    description = {
        "model": keywords,
        "data": data,
        "source": found.layout,
        "init_from": str(source),
    }

    count = counting.count(module, (513, 513))
    with lock.held(folder), checkpoint.Checkpoints(folder, keep=1) as kept:
        export(folder / WEIGHTS, variables, description)
        runtime.write_whole(folder / CONFIG, json.dumps(description, indent=1) + "\n")
        runtime.write_whole(
            folder / MAPPING, "".join(f"{ours}\t{mapping[ours]}\n" for ours in sorted(mapping))
        )
        runtime.write_whole(folder / CARD, _card(source, description, count))
        kept.save(0, variables, {"imported": str(source)})
    runtime.say("the model, as keywords of deeplab_jax.models.build:")
    for key, value in keywords.items():
        runtime.say(f"  {key} = {value!r}")
    runtime.say(f"  data.normalization = {data['normalization']!r}")
    runtime.say(
        f"{count['parameters']:,} parameters, {count['multiply_adds'] / 1e9:.2f} G multiply-adds "
        f"at 513x513\nwritten: {folder}; use it with --config=configs/zoo.py:{folder}"
    )


def export(path: Path, variables: Any, description: dict[str, Any]) -> None:
    """Writes variables as safetensors, named by their paths; `importers.load` reads them again.

    Args:
      path: of the file.
      variables: {"params", "batch_stats"}.
      description: JSON-able; goes into the header, `importers.infer` reads it.
    """
    arrays = {
        "/".join(str(key.key) for key in keys): np.ascontiguousarray(leaf)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    content = safetensors.numpy.save(arrays, {importers.HEADER: json.dumps(description)})
    runtime.write_whole(path, content)


def _card(source: Path, description: dict[str, Any], count: dict[str, Any]) -> str:
    model, origin = description["model"], report.text(description["source"])
    digest = f" (SHA-256 {sha256(source)})" if source.is_file() else ""
    keywords = "\n".join(f"| {key} | {_code(repr(value))} |" for key, value in model.items())
    return f"""# {model["name"]} {model["backbone"]}, {model["num_classes"]} classes

Weights of {origin}, imported from {_code(source.name)}{digest}. They keep the licence and
the conditions of their source.

Images are RGB, normalised as `{description["data"]["normalization"]}`; {count["parameters"]:,}
parameters, {count["multiply_adds"] / 1e9:.2f} G multiply-adds at 513x513.

| keyword of `models.build` | value |
|---|---|
{keywords}

```python
import jax
from deeplab_jax import importers, models

module = models.build(**importers.infer("{WEIGHTS}"))
target = jax.eval_shape(lambda: module.init(jax.random.key(0), jax.numpy.zeros((1, 65, 65, 3))))
variables = importers.load("{WEIGHTS}", target)
```
"""


def _code(value: str) -> str:
    """As code in Markdown, which nothing in it ends: a file's header may say anything."""
    return f"`{''.join(c if c.isprintable() and c not in '`|' else '_' for c in value)}`"
