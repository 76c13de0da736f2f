"""Training: one jitted step over a data mesh, and the loop around it."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from deeplab_jax import checkpoint, losses, nonfinite, ops, optim, processes, runtime
from deeplab_jax.data.transforms import normalization
from deeplab_jax.errors import ConfigError, DataError, Preempted
from deeplab_jax.meter import Meter
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
        sound = nonfinite.sound(loss, grads, updates, batch_stats)
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
            "gradient_norm": optax.tree.norm(grads),
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


def train(
    module: nn.Module,
    variables: Any,
    batches,
    config: Mapping[str, Any],
    workdir: Path,
    *,
    first: int | None,
    mesh: jax.sharding.Mesh,
    evaluate: Callable[[Any, int], tuple[dict[str, Any], str]],
    begun: Callable[[], None] = lambda: None,
    position_check: Mapping[str, Any],
    profile: Path | None = None,
) -> tuple[Any, int]:
    """Trains to `config.train.steps`, from `first` on.

    Args:
      module: the network to train.
      variables: where to start; unused when resuming, and not to be used afterwards: the first
        step may take over their memory.
      batches: iterator with `get_state`, `set_state` (see `data.pipeline.train_iterator`).
      config: the whole configuration.
      workdir: gets checkpoints/, best.json and metrics.jsonl.
      first: the checkpoint to resume from, that of `checkpoint.recover`; 0 or None: there is none.
      mesh: the devices.
      evaluate: called with (variables, step) every `train.eval_every` steps, not at the end. Gives
        (its line for metrics.jsonl, the key in it by which the best checkpoint is kept: the more
        the better).
      begun: called before the first step, once it is sure that a checkpoint in the workdir fits.
      position_check: facts on the data stream that a resumed run must share.
      profile: folder for a trace of a few steps.

    Returns:
      (the trained {"params", "batch_stats"}, averaged if `train.ema_decay` says so, and their
      step: past `train.steps` where the workdir already was).

    Raises:
      NumericsError: when loss, gradient or batch norm are no longer finite, two steps later at
        most; the last checkpoint before is kept. With `train.on_nan` = "skip" such steps change
        nothing, up to `train.max_skipped` of them.
      Preempted: after SIGTERM or Ctrl-C, with a checkpoint of the step that it came in (of several
        processes: of one soon after); of an evaluation that it came in, before that one.
      WeightsError: when the checkpoint does not fit.
      ResourceError: when a checkpoint cannot be written, one step later at most.
      DataError: from the source.
    """
    train, steps, first = config["train"], config["train"]["steps"], first or 0
    train_step, state = begin(module, variables, config, mesh)
    own_mesh = processes.own_mesh(mesh)
    finish = finisher(config["data"], own_mesh)
    writer = runtime.MetricWriter(workdir / "metrics.jsonl")
    best = checkpoint.read_best(workdir)

    def best_step():
        return best and best.step

    with (
        checkpoint.Checkpoints(workdir, train["keep_checkpoints"], best_step) as kept,
        processes.Preemption() as preemption,
    ):
        position = {}
        if first:
            state, position = kept.restore(first, state)
            _check_position(position, position_check, workdir, config["data"]["allow_change"])
            batches.set_state(position["iterator"])
            runtime.say(f"resuming from step {first} in {workdir}")
        begun()
        writer.forget_after(first)
        watch = nonfinite.Watch(train, workdir, lambda: kept.newest, position.get("skipped", 0))
        meter = Meter(train["batch_size"])

        def save(step):
            watch.settle()
            kept.save(step, state, position | {"skipped": watch.skipped} | position_check)

        def evaluated(step):
            """Evaluates, and keeps the checkpoint if it is the best; of a killed run again."""
            nonlocal best
            with meter.paused():
                found = preemption.until_asked(lambda: evaluate(state.variables, step))
            if found is None:
                return
            line, figure = found
            this = checkpoint.Best(step, line[figure], figure)
            if this.beats(best):
                save(step)
                kept.finish()
                best = this
                checkpoint.note_best(workdir, best)
            writer.write({"step": step} | line)  # last: a resumed run evaluates what has no line

        def stop_if_asked(step):
            if preemption.asked:
                save(step)
                kept.finish()
                raise Preempted(
                    f"{preemption.asked}: step {step} of {steps} is saved in {workdir}; the same "
                    "command goes on from there, with any number of devices"
                )

        if first >= steps:
            runtime.say(f"step {first} of {steps}: nothing left to train")
            return state.variables, first
        if first and _due(first, train["eval_every"]):
            if not processes.first_says(writer.has_evaluation_of(first)):
                evaluated(first)
                stop_if_asked(first)

        figures = None
        with (
            runtime.Progress(steps, "train", initial=first, every_seconds=float("inf")) as progress,
            runtime.StepProfile(profile, first + 1) as profiled,
        ):
            meter.restart()
            for step in range(first + 1, steps + 1):
                profiled.before(step, figures)
                # The device is still at work on the step before: this batch is read and sent
                # beside it.
                batch = next(batches)
                meter.batch_is_there()
                position = {"iterator": batches.get_state()}
                if step == first + 1:
                    runtime.say("compiling the train step")
                sent = processes.joined(finish(runtime.shard_batch(batch, own_mesh)), mesh)
                state, figures = train_step(state, sent)
                if step == first + 1:
                    jax.block_until_ready(figures)
                    runtime.say(f"first step after {time.monotonic() - meter.started:.0f} s")
                    meter.restart()
                    meter.batch_is_there()
                meter.step_began(figures)
                watch.saw(step, batch, figures)
                kept.check()
                progress.advance()

                last, preempted = step == steps, preemption.reached(step)
                if _due(step, config["log_every"]) or last or preempted:
                    watch.settle()
                    line = {"step": step} | meter.finish()
                    left = (steps - step) * train["batch_size"] / line["images_per_second"]
                    writer.write(line)
                    progress.note(loss=f"{line['loss']:.3f}")
                    runtime.say(
                        f"step {step}/{steps}  loss {line['loss']:.4f}  "
                        f"lr {line['learning_rate']:.2e}  {line['images_per_second']:.1f} img/s  "
                        f"left {runtime.duration(left)}  "
                        f"data wait {100 * line['data_wait_share']:.0f} %"
                    )
                if _due(step, train["checkpoint_every"]) or last:
                    save(step)
                if _due(step, train["eval_every"]) and not (last or preempted):
                    evaluated(step)
                stop_if_asked(step)
    return state.variables, steps


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0  # 0: never


def _check_position(
    position: Mapping[str, Any], expected: Mapping[str, Any], workdir, allowed: bool
) -> None:
    for key, value in expected.items():
        if position.get(key, value) == value:  # an older version may not have kept it
            continue
        told = (
            f"{workdir}: its checkpoint was trained with {key} {position[key]}, now it is {value}"
        )
        if not allowed:
            raise DataError(
                f"{told}: the order of the data would differ. Use another --workdir, or go on "
                "regardless with --config.data.allow_change=True"
            )
        runtime.say(f"warning: {told}; going on as data.allow_change says")
