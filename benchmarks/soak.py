"""Trains while it is killed, terminated, interrupted and its newest checkpoint damaged; then
compares what has become of it with a run that nothing happened to.

    python benchmarks/soak.py --out=/tmp/soak --write=benchmarks/results/soak.md

The embedded scenes, configs/v3plus.py. What follows `--` goes to the command line of both runs, for
instance another backbone. Exit code 0: parameters, optimizer, batch norm and the position in the
data are identical, bit for bit; 1: they are not.
"""

import argparse
import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from deeplab_jax import checkpoint

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# Saved; or there was no step to save, training had just ended.
CODES = {
    signal.SIGKILL: (-signal.SIGKILL,),
    signal.SIGTERM: (75, -signal.SIGTERM),
    signal.SIGINT: (75, 128 + signal.SIGINT),
}


def command(workdir: Path, steps: int, more) -> list[str]:
    """A run of the command line."""
    return [
        *(sys.executable, "-m", "deeplab_jax.main"),
        f"--config={ROOT / 'configs' / 'v3plus.py'}",
        f"--workdir={workdir}",
        f"--config.train.steps={steps}",
        "--config.train.checkpoint_every=10",
        "--config.train.eval_every=100",
        "--config.log_every=10",
        *more,
    ]


def newest(workdir: Path) -> int:
    return checkpoint.latest_step(workdir) or 0


def flip(path: Path, chance: random.Random) -> None:
    """Turns one bit of a file round."""
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def truncate(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def remove(path: Path, _) -> None:
    path.unlink()


def damage(workdir: Path, chance: random.Random) -> str:
    """Harms a file of the newest checkpoint, where there is another one; says how."""
    folder = workdir / checkpoint.FOLDER
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    if len(steps) < 2 or chance.random() < 0.5:
        return "nothing"
    files = [path for path in (folder / str(steps[-1])).rglob("*") if path.is_file()]
    harm = chance.choice((flip, truncate, remove))
    path = chance.choice([p for p in files if p.stat().st_size and p.name != "commit_success.txt"])
    harm(path, chance)
    return f"{harm.__name__}: {path.relative_to(folder)}"


def disturbed(workdir: Path, options, more) -> tuple[collections.Counter, int]:
    """Runs to the end in spite of everything; (what was done, how many processes it took)."""
    chance, done, lives = random.Random(options.seed), collections.Counter(), 0
    left = options.disturbances
    with (workdir.parent / "log").open("a") as log:
        while True:
            lives += 1
            began, before = time.monotonic(), newest(workdir)
            run = subprocess.Popen(
                command(workdir, options.steps, more), stdout=log, stderr=log, cwd=ROOT
            )
            # At a random step of the share that this disturbance has of the whole.
            aim = before + chance.uniform(1, 2 * max(options.steps - before, 2) / (left + 1))
            while left and run.poll() is None and newest(workdir) < aim:
                time.sleep(0.01)
            if left and run.poll() is None:
                time.sleep(chance.random() * 2)
            number = chance.choice(SIGNALS)
            if left and run.poll() is None:
                run.send_signal(number)
            code = run.wait()
            if code == 0:
                print(f"ended after {lives} processes", flush=True)
                return done, lives
            if code not in CODES[number]:
                sys.exit(f"exit code {code} after {number.name}: see {workdir.parent / 'log'}")
            left -= 1
            harm = damage(workdir, chance)
            done[number.name] += 1
            done[harm.partition(":")[0]] += harm != "nothing"
            print(
                f"{time.monotonic() - began:.0f} s, from step {before} to {newest(workdir)}: "
                f"{number.name}, {code}; {harm}",
                flush=True,
            )


def saved(workdir: Path, step: int) -> dict:
    """All that a run goes on from at a step: {"state", "position"}."""
    folder = (workdir / checkpoint.FOLDER / str(step)).absolute()
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(folder / "state")
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        position = checkpointer.restore(folder / "position")
    return {"state": jax.tree.map(np.asarray, state), "position": position}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder; made anew")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--disturbances", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the disturbances")
    parser.add_argument("--write", type=Path, help="a Markdown file for the result")
    parser.add_argument("more", nargs="*", help="for the command line")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    done, lives = disturbed(options.out / "disturbed", options, options.more)
    with (options.out / "log_undisturbed").open("w") as log:
        whole = command(options.out / "undisturbed", options.steps, options.more)
        subprocess.run(whole, check=True, stdout=log, stderr=log, cwd=ROOT)
    ours, theirs = (
        saved(options.out / name, options.steps) for name in ("disturbed", "undisturbed")
    )
    flat = [jax.tree.leaves(x["state"]) for x in (ours, theirs)]
    apart = sum(not np.array_equal(a, b) for a, b in zip(*flat, strict=True))
    in_place = ours["position"] == theirs["position"]
    counts = ", ".join(f"{count} {name}" for name, count in sorted(done.items()) if count)
    verdict = (
        f"{options.steps} steps in {lives} processes ({counts}): "
        f"{apart} of {len(flat[0])} arrays of the state differ, the position in the data is "
        f"{'the same' if in_place else 'another'}"
    )
    print(verdict)
    if options.write:
        shown = [f"--out=DIR --steps={options.steps} --disturbances={options.disturbances}"]
        shown += [f"--seed={options.seed}", *(["--", *options.more] if options.more else [])]
        text = f"# Soak\n\n    python benchmarks/soak.py {' '.join(shown)}\n\n{verdict}.\n"
        options.write.write_text(text)
    return 0 if in_place and not apart else 1


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # `soak.py &` must not hand on SIG_IGN
    sys.exit(main())
