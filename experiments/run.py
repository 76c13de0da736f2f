"""Trains and evaluates the rows of a table, and writes paper | ours.

    python -m experiments.run TABLE [--scale=embedded] [--rows=TEXT] [--seeds=0,1,2] [--jobs=2]
    python -m experiments.run --config=configs/v3plus.py --sweep=model.output_stride=8,16,32 \\
        --sweep="model.atrous_rates=(2,4,6),(4,)"

writes OUT/TABLE.json, .md and .png. The same command goes on where it was stopped. Rows that only
evaluate differently share one training, and so do tables and sweeps. `--list` says what would run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deeplab_jax.errors import ConfigError, UserError
from deeplab_jax.output import say
from experiments import plan, results, sweep
from experiments.scale import EMBEDDED
from experiments.work import Worker, done, trained


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; SystemExit where it is wrong."""
    parser = argparse.ArgumentParser(
        "python -m experiments.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("table", nargs="?", help=f"one of {', '.join(plan.tables())}")
    parser.add_argument(
        "--scale",
        default="",
        help=f"{EMBEDDED}: MobileNetV2 on the embedded scenes, in minutes; voc, camvid, cityscapes "
        "or another dataset: the paper's network on that; left out: what the table is about",
    )
    parser.add_argument("--rows", default="", metavar="TEXT", help="only rows with this in them")
    parser.add_argument("--seeds", default="0", help="of the trainings, comma between; default 0")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time; default 1")
    parser.add_argument("--out", type=Path, default=Path("results"), help="default results")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="over every row's own, such as data.root=VOC2012; may be given again",
    )
    parser.add_argument("--config", default="", help="of a sweep: FILE.py:preset")
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=V1,V2",
        help="an axis of the grid, tuples in brackets; may be given again",
    )
    parser.add_argument("--name", default="sweep", help="of a sweep's files; default sweep")
    parser.add_argument("--list", action="store_true", help="say what would run, and run nothing")
    return parser.parse_args(argv)


def overrides(given: Sequence[str]) -> dict[str, Any]:
    """{"data.root": "VOC2012"} of ["data.root=VOC2012"]."""
    for word in given:
        if "=" not in word:
            raise ConfigError(f"--set {word}: takes KEY=VALUE")
    return {key: sweep.value(text) for key, text in (word.split("=", 1) for word in given)}


def listing(jobs: Sequence[plan.Job], left_out, seeds: Sequence[int], out: Path) -> str:
    """The arms, their rows and what is there of them."""
    lines = []
    for arm, rows in plan.arms(jobs).items():
        there = sum(trained(rows[0], out, seed) for seed in seeds)
        steps = rows[0].config["train.steps"]
        lines.append(f"{arm}: {steps} steps, {there} of {len(seeds)} seeds trained")
        for job in rows:
            there = sum(done(job, out, seed) for seed in seeds)
            lines.append(f"  {job.row.label}: {there} of {len(seeds)} seeds evaluated")
    lines += [f"left out: {label}: {reason}" for label, reason in left_out.items()]
    return "\n".join(lines)


def _rows(args) -> tuple[str, list, list]:
    """(name of the files, rows, contrasts) that are asked for."""
    if bool(args.table) == bool(args.sweep) or bool(args.sweep) != bool(args.config):
        raise ConfigError("name a table, or --config and --sweep")
    if args.sweep:
        return args.name, sweep.rows(args.config, [sweep.axis(text) for text in args.sweep]), []
    table = plan.table(args.table)
    name = f"{args.table}-{args.scale}" if args.scale else args.table
    beside = getattr(table, "BESIDE", [])
    return name, [*table.ROWS, *beside], getattr(table, "CONTRASTS", [])


def run(args: argparse.Namespace) -> int:
    """Does it; returns the exit code. Raises UserError for what cannot be."""
    try:
        seeds = [int(seed) for seed in args.seeds.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds={args.seeds}: takes whole numbers, comma between") from error
    if args.jobs < 1:
        raise ConfigError(f"--jobs={args.jobs}: at least 1")
    name, rows, contrasts = _rows(args)
    path = args.out / name
    if args.table and hasattr(table := plan.table(args.table), "measured"):
        if args.list or args.rows or args.scale:
            raise ConfigError(
                f"{args.table} has no trainings: --list, --rows and --scale say nothing"
            )
        results.write(path, results.measured(rows, table.measured(overrides(args.set))))
        say(path.with_name(path.name + ".md").read_text())
        return 0
    jobs, left_out = plan.jobs(rows, args.scale, overrides(args.set))
    chosen = plan.chosen(jobs, args.rows)
    if args.rows and not chosen:
        raise ConfigError(f"--rows={args.rows}: no row has this in it; --list shows them")
    if args.list:
        say(listing(chosen, left_out, seeds, args.out))
        return 0
    errors = Worker(args.out, args.jobs).work(chosen, seeds)
    found = results.summary(rows, jobs, left_out, contrasts, seeds, args.out)
    if args.sweep:
        of = {job.row.label: job for job in jobs}
        for row in found["rows"]:
            if row["ours"] is not None:
                row |= sweep.costs(of[row["label"]], args.out)
        sweep.write(path, found)
    else:
        results.write(path, found)
    say(path.with_name(path.name + ".md").read_text())
    for error in errors:
        say(f"error: {error}")
    return 1 if errors else 0


def main(argv: Sequence[str]) -> int:
    args = parse(argv)
    try:
        return run(args)
    except UserError as error:
        say(f"error: {error}")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
