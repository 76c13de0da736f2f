"""Checkpoints of the train state and the data position, by Orbax; nothing half-written counts."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from deeplab_jax import runtime
from deeplab_jax.errors import WeightsError

FOLDER = "checkpoints"


def manager(workdir: Path, keep: int) -> ocp.CheckpointManager:
    """Manages workdir/checkpoints, keeping the newest `keep` steps.

    Use it in a `with`: leaving without closing loses saves. It removes half-written steps, so
    only the process that trains there may open it.
    """
    folder = (workdir / FOLDER).absolute()
    # Not by Orbax's cleanup_tmp_directories: its thread outlives a run that fails at once, and
    # then ends in a traceback of its own.
    if folder.is_dir() and runtime.leads():
        for path in folder.iterdir():
            if ocp.utils.is_tmp_checkpoint(path):
                shutil.rmtree(path)
    return ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep)
        ),
        item_handlers={
            "state": ocp.StandardCheckpointHandler(),
            "position": ocp.JsonCheckpointHandler(),
        },
    )


def save(manager: ocp.CheckpointManager, step: int, state: Any, position: dict) -> None:
    """Begins saving `state` (a pytree) and `position` (JSON: where the data stream is)."""
    manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(_parts(state)), position=ocp.args.JsonSave(position)
        ),
    )


def restore(manager: ocp.CheckpointManager, step: int, like: Any) -> tuple[Any, dict]:
    """Returns (state shaped and placed like the dataclass `like`, position) of a saved step.

    Raises:
      WeightsError: if the checkpoint is damaged or belongs to another model.
    """
    try:
        saved = manager.item_metadata(step).state.tree
    except Exception as error:
        raise WeightsError(
            f"{manager.directory}/{step}: cannot be read ({_first_line(error)})"
        ) from error
    expected = {"params": like.params, "batch_stats": like.batch_stats}
    _check_fits({key: saved[key] for key in expected}, expected, f"{manager.directory}/{step}")
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _parts(like))
    try:
        found = manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), position=ocp.args.JsonRestore()
            ),
        )
    except Exception as error:  # Orbax raises many kinds, some of them bare Exception
        raise WeightsError(
            f"{manager.directory}/{step}: cannot be restored: damaged, or trained with another "
            f"optim.name, train.freeze_backbone or train.ema_decay ({_first_line(error)}). Use the "
            "configuration it was trained with, or another --workdir"
        ) from error
    return dataclasses.replace(like, **found.state), found.position


def _parts(state: Any) -> dict[str, Any]:
    """A dataclass or mapping as a dict without what is None: older checkpoints lack it too."""
    parts = state if isinstance(state, Mapping) else vars(state)
    return {name: part for name, part in parts.items() if part is not None}


def latest_step(workdir: Path) -> int | None:
    """The newest complete step in workdir/checkpoints, or None."""
    if not (workdir / FOLDER).is_dir():
        return None
    steps = [int(p.name) for p in (workdir / FOLDER).iterdir() if p.name.isdigit()]
    return max(steps, default=None)


def load_variables(workdir: Path, like: Any) -> tuple[Any, int]:
    """({"params", "batch_stats"}, step) of the newest checkpoint in a workdir of ours.

    Where training kept their moving average that is what is loaded.

    Args:
      like: variables of the wanted structure (arrays or ShapeDtypeStructs).

    Raises:
      WeightsError: if there is none or it does not fit.
    """
    found, step = read_variables(workdir)
    _check_fits(found, like, str(workdir / FOLDER / str(step)))
    arrays = jax.tree.map(lambda leaf, array: array.astype(leaf.dtype), like, found)
    return jax.device_put(arrays), step


def read_variables(workdir: Path) -> tuple[Any, int]:
    """As `load_variables`, NumPy arrays, whatever the model.

    Raises:
      WeightsError: if there is none or it is damaged.
    """
    step = latest_step(workdir)
    if step is None:
        raise WeightsError(f"{workdir}: no checkpoint in {workdir / FOLDER}; train there first")
    path = (workdir / FOLDER / str(step) / "state").absolute()

    def like(saved):  # takes no memory; without it Orbax asks for the devices of the training
        return np.broadcast_to(np.zeros((), saved.dtype), saved.shape)

    with ocp.StandardCheckpointer() as checkpointer:
        try:
            # The optimizer's state comes along and is dropped, whatever it was.
            saved = ocp.StandardCheckpointHandler().metadata(path).tree
            found = checkpointer.restore(path, jax.tree.map(like, saved))
        except Exception as error:
            raise WeightsError(f"{path}: cannot be read ({_first_line(error)})") from error
    found = found.get("average") or found
    # A network without batch norm may have been saved without "batch_stats".
    return {key: found.get(key, {}) for key in ("params", "batch_stats")}, step


def _check_fits(theirs: Any, ours: Any, path: str) -> None:
    """Raises WeightsError if saved variables have other names or shapes than ours."""
    theirs, ours = _shapes(theirs), _shapes(ours)
    differing = sorted(name for name in theirs | ours if theirs.get(name) != ours.get(name))
    if differing:
        raise WeightsError(
            f"{path}: belongs to another model; the first of {len(differing)} differences: "
            + ", ".join(f"{n}: {theirs.get(n)} there, {ours.get(n)} here" for n in differing[:3])
            + ". Use the configuration it was trained with, or another --workdir"
        )


def _shapes(tree) -> dict[str, tuple]:
    return {
        jax.tree_util.keystr(path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
