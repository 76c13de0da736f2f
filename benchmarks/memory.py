"""Scratch memory of compiled programs, by XLA's own account; compiles only, runs nothing.

python benchmarks/memory.py [--cases "v3 resnet_50 16" ...] [--size 513] [--batch 8]

First upsampling and cross-entropy alone, with the gradient of the logits; then whole training
steps. The yardstick is one float32 array [batch, size, size, classes]: the upsampled logits.
"""

import argparse

import contenders
import contest
import training_step

COLUMNS = (
    "program",
    "batch",
    "dtype",
    "remat",
    "scratch MB",
    "arguments MB",
    "upsampled logits MB",
    "scratch / upsampled logits",
)


def loss(size: int, batch: int) -> dict[str, int]:
    """Of upsampling from a quarter of the size, and cross-entropy: value and gradient."""
    import jax
    import jax.numpy as jnp

    from deeplab_jax import losses

    small = -(-size // 4)
    logits = jax.ShapeDtypeStruct((batch, small, small, contenders.CLASSES), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch, size, size), jnp.uint8)
    program = jax.jit(jax.value_and_grad(losses.softmax_cross_entropy, has_aux=True))
    return analysis(program.lower(logits, labels).compile())


def step(case: str, size: int, batch: int, dtype: str, remat: bool) -> dict[str, int]:
    program, *arguments = contenders.our_training(case, size, batch, dtype, remat)
    return analysis(program.lower(*arguments).compile())


def analysis(compiled) -> dict[str, int]:
    """Bytes: of scratch and arguments, and as XLA counts those that the program's kernels touch."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    return {
        "scratch": memory.temp_size_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "accessed": int(cost.get("bytes accessed", 0)),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", nargs="*", default=training_step.CASES)
    parser.add_argument("--size", type=int, default=513)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--name", default="memory", help="of the files in results/")
    args = parser.parse_args()

    programs = [("upsampling + cross-entropy", "float32", None, loss, (args.size, args.batch))]
    for case in args.cases:
        for remat in (False, True):
            options = (case, args.size, args.batch, args.dtype, remat)
            programs.append((case, args.dtype, "yes" if remat else "no", step, options))
    full = 4 * args.batch * args.size**2 * contenders.CLASSES
    rows, raw = [], []
    for name, dtype, remat, function, options in programs:
        print(f"{name}, remat {remat or '-'}", flush=True)
        result = contest.apart(function, *options)
        sizes = [result["scratch"] / 1e6, result["arguments"] / 1e6, full / 1e6]
        rows.append([name, args.batch, dtype, remat, *sizes, result["scratch"] / full])
        raw.append({"program": name, "remat": remat, "upsampled_logits": full} | result)
    title = f"Scratch memory, {args.size}x{args.size}"
    contest.write(args.name, title, COLUMNS, rows, raw)


if __name__ == "__main__":
    main()
