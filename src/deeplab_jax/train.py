"""Training: its state, and one jitted step over a data mesh."""

from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from deeplab_jax import losses, nonfinite, ops, optim, processes, runtime
from deeplab_jax.data.transforms import normalization
from deeplab_jax.errors import ConfigError
from deeplab_jax.predict import normalize


@flax.struct.dataclass
class TrainState:
    """Everything a step changes. `step` counts finished steps and is the only clock.

    `average` is {"params", "batch_stats"}, their exponential moving average over the steps, or
    None where `train.ema_decay` is.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    average: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """{"params", "batch_stats"} to evaluate and hand on: the average if there is one."""
        return self.average or {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    variables: Any, optimizer: optax.GradientTransformation, train: Mapping[str, Any]
) -> TrainState:
    """The state before the first step, from {"params", "batch_stats"}; `train` is config.train."""
    average = None
    if train["ema_decay"] is not None:
        average = jax.tree.map(jnp.copy, variables)  # a step gives away its state's memory
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(trained(variables["params"], train)),
        average=average,
    )


def trained(params: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `params` that is trained: all, or what is outside a frozen backbone."""
    frozen = {"backbone"} if train["freeze_backbone"] else set()
    return {name: leaves for name, leaves in params.items() if name not in frozen}


def init_variables(module: nn.Module, seed: int, channels: int = 3) -> Any:
    """Freshly initialised {"params", "batch_stats"}, float32; no size of image is fixed by it."""
    image = jnp.zeros((1, 65, 65, channels))
    # VGG-16 has no batch norm.
    return {"batch_stats": {}} | jax.jit(module.init)(jax.random.key(seed), image)


def variable_shapes(module: nn.Module, channels: int = 3) -> Any:
    """Of `init_variables`, as `jax.ShapeDtypeStruct`: what weights are loaded into."""
    return jax.eval_shape(lambda: init_variables(module, 0, channels))


def check_batch(config: Mapping[str, Any], mesh: jax.sharding.Mesh) -> None:
    """Raises ConfigError unless the batch splits into its parts over the devices."""
    train, shards = config["train"], mesh.shape["data"]
    size, parts = train["batch_size"], train["accumulation_steps"]
    groups = config["model"].get("batch_norm_groups", 1)
    runtime.check_batch_size("train.batch_size", size, shards)
    if size == parts * groups and train["fine_tune_batch_norm"]:
        raise ConfigError(
            f"train.batch_size={size} in {parts * groups} parts: batch norm of the pooled features "
            "would see one value a channel; use larger parts or train.fine_tune_batch_norm=False"
        )
    if parts < 1 or size % (parts * shards):
        raise ConfigError(
            f"train.batch_size={size} does not split into train.accumulation_steps={parts} "
            f"parts over {shards} devices"
        )
    if size // parts % groups:
        raise ConfigError(
            f"model.batch_norm_groups={groups}: {size // parts} images at a time do not fall into "
            "so many parts"
        )


def make_step(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    config: Mapping[str, Any],
    mesh: jax.sharding.Mesh,
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """The jitted train step: (state, {"image", "label"}) → (state, figures of the step).

    The batch is split over the mesh, the state is on every device; losses, the pixels that
    hard-pixel mining chooses and batch-norm statistics are of the whole batch. With
    `train.accumulation_steps` = n the batch goes through the network in n parts, and each part's
    loss counts by its share of the labelled pixels: gradients are those of the whole batch, but
    batch norm sees, and mining chooses from, a part at a time. The state comes from `init_state`
    with an `optimizer` of the `trained` parameters. The old state's memory is reused: do not touch
    it after the call.
    """
    data, train = config["data"], config["train"]
    parts = train["accumulation_steps"]
    check_batch(config, mesh)
    module = runtime.spatially(module, mesh)

    def labelled(label):
        return jnp.sum(label != data["ignore_label"], dtype=jnp.float32)

    def loss_of_part(moving, state, batch_stats, part, key, count):
        outputs, updated = module.apply(
            {"params": state.params | moving, "batch_stats": batch_stats},
            normalize(part["image"], data["normalization"]),
            train=True,
            train_batch_norm=train["fine_tune_batch_norm"],
            freeze_backbone=train["freeze_backbone"],
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        loss = losses.training_loss(
            outputs,
            _truth(part),
            config["loss"],
            state.step,
            key=jax.random.fold_in(key, 1),
            ignore_label=data["ignore_label"],
            align_corners=config["model"]["align_corners"],
        )
        share = labelled(part["label"]) / count
        return loss * share.astype(loss.dtype), updated["batch_stats"]

    def step(state: TrainState, batch):
        batch = jax.tree.map(lambda x: runtime.split_over_height(x, mesh), batch)
        key = jax.random.fold_in(jax.random.key(config["seed"]), state.step)
        count = jnp.maximum(labelled(batch["label"]), 1)  # a batch may be void throughout
        moving = trained(state.params, train)
        gradient = jax.value_and_grad(loss_of_part, has_aux=True)

        def accumulate(carry, part_and_key):
            loss, grads, batch_stats = carry
            (more, batch_stats), new = gradient(moving, state, batch_stats, *part_and_key, count)
            return (loss + more, jax.tree.map(jnp.add, grads, new), batch_stats), None

        if parts == 1:
            (loss, batch_stats), grads = gradient(
                moving, state, state.batch_stats, batch, key, count
            )
        else:
            # Rows i, i + n, ...: each part takes as many rows from every device.
            split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)
            start = (0.0, jax.tree.map(jnp.zeros_like, moving), state.batch_stats)
            # Unrolled on CPU: XLA's convolutions inside a loop are 25 times slower there.
            (loss, grads, batch_stats), _ = jax.lax.scan(
                accumulate,
                start,
                (split, jax.random.split(key, parts)),
                unroll=mesh.devices.flat[0].platform == "cpu",
            )
        updates, opt_state = optimizer.update(grads, state.opt_state, moving)
        params = state.params | optax.apply_updates(moving, updates)
        gradient_norm = optax.tree.norm(grads)
        sound = nonfinite.sound(loss, gradient_norm, updates, batch_stats)
        average = None
        if state.average is not None:
            # In this form what does not change keeps its average bit for bit.
            average = jax.tree.map(
                lambda old, new: old + (1 - train["ema_decay"]) * (new - old),
                state.average,
                {"params": params, "batch_stats": batch_stats},
            )
        figures = {
            "loss": loss,
            "gradient_norm": gradient_norm,
            "learning_rate": schedule(state.step),
            "sound": sound,
        }
        after = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            average=average,
        )
        if train["on_nan"] == "skip":
            after = nonfinite.kept_where(sound, after, state).replace(step=after.step)
        return after, figures

    replicated, split = runtime.replicated(mesh), runtime.batch_sharding(mesh)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(replicated, split),
        out_shardings=(replicated, replicated),
    )


def _truth(batch) -> dict[str, jax.Array]:
    """{name of an output: its labels}: "label" is for the logits, "label_NAME" for a head NAME."""
    labels = {key: value for key, value in batch.items() if key.startswith("label")}
    return {key.removeprefix("label").removeprefix("_") or "logits": x for key, x in labels.items()}


def finisher(data: Mapping[str, Any], mesh: jax.sharding.Mesh) -> Callable[[Any], Any]:
    """What turns the batches of `train_iterator` on the mesh into those of a train step."""
    if data["augment_on"] == "host":
        return lambda batch: batch

    def finish(windows):
        pad_value = normalization(data["normalization"], windows["image"].shape[-1])[0]
        return ops.crops(windows, pad_value, data["ignore_label"])

    return jax.jit(finish, out_shardings=runtime.batch_sharding(mesh))


def begin(
    module: nn.Module, variables: Any, config: Mapping[str, Any], mesh: jax.sharding.Mesh
) -> tuple[Callable, TrainState]:
    """(the jitted step of `make_step`, the state before the first) as `config` asks for them.

    `variables`, {"params", "batch_stats"}, are not to be used afterwards: the first step may take
    over their memory.
    """
    schedule = optim.schedule(config["optim"], config["train"]["steps"])
    moving = trained(variables["params"], config["train"])
    optimizer = optim.optimizer(moving, schedule, config["optim"])
    state = init_state(variables, optimizer, config["train"])
    state = processes.everywhere(state, mesh)
    return make_step(module, optimizer, schedule, config, mesh), state
