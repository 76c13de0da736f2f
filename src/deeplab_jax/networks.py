"""The network that a configuration and a workdir mean: built, and with its weights."""

import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict

from deeplab_jax import advice, checkpoint, importers, models, runtime
from deeplab_jax import config as configuration
from deeplab_jax import train as training
from deeplab_jax.data.transforms import normalization
from deeplab_jax.errors import ConfigError, WeightsError


def build(config) -> tuple[nn.Module, nn.Module]:
    """(module to train, module to evaluate), over the same variables."""
    try:
        normalization(config.data.normalization)
        return models.build(**config.model), models.build(**configuration.eval_model(config))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.model: {error}") from error


def trained(config, workdir: Path, module: nn.Module, channels: int) -> tuple[Any, int]:
    """(variables, step): of the workdir's `config.checkpoint`, else of `init_from`."""
    like = training.variable_shapes(module, channels)
    if checkpoint.latest_step(workdir) is not None:
        _check_start(config, workdir)
        variables, step = checkpoint.load_variables(workdir, like, config.checkpoint)
        runtime.say(f"weights: {workdir}, step {step}")
        return variables, step
    if config.checkpoint != "newest":
        raise WeightsError(f"{workdir}: no checkpoint here, so none that is {config.checkpoint}")
    if not config.init_from:
        raise WeightsError(f"{workdir}: no checkpoint here; train first or set --config.init_from")
    return load(config, like), 0


def _check_start(config, workdir: Path) -> None:
    """Raises ConfigError if `init_from` names other weights than this workdir's came from."""
    try:
        start = json.loads((workdir / "config.json").read_text())["init_from"]
    except (OSError, ValueError, KeyError):
        return  # not written by this version: nothing to compare with
    wanted = config.init_from
    if wanted and wanted != start and Path(wanted).resolve() != workdir.resolve():
        raise ConfigError(
            f"{workdir} holds a checkpoint that came from {start or 'no weights'}, not from "
            f"init_from={wanted}; use another --workdir, or leave init_from out"
        )


def load(config, target: Any) -> Any:
    """The variables of `init_from`, into the shape of `target`; says what was left out."""
    init_from = str(Path(config.init_from).expanduser())
    for warning in advice.before_loading(config, Path(init_from)):
        runtime.say(warning)
    if checkpoint.latest_step(Path(init_from)) is not None:
        saved, step = checkpoint.read_variables(Path(init_from))
        source = {"/".join(path): array for path, array in flatten_dict(saved).items()}
        name = f"{init_from}, step {step}"
    else:
        source, name = init_from, init_from
    variables = importers.load(source, target, log=runtime.say, name=name)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(variables)):
        raise WeightsError(
            f"{init_from}: a backbone alone, or a classifier of other classes; train first"
        )
    return jax.device_put(variables)  # files give NumPy arrays, sent anew at every call


def check_channels(config, channels: int) -> None:
    """Raises ConfigError for images of other channels than the groups of a late fusion."""
    groups = config.model.channel_groups
    if groups and sum(groups) != channels:
        raise ConfigError(f"model.channel_groups={tuple(groups)} for images of {channels} channels")
