"""Trains and evaluates the rows of a table, and writes paper | ours.

    python -m experiments.run TABLE [--rows=TEXT] [--seeds=0,1,2] [--jobs=2] [--out=results]

The same command goes on where it was stopped. Rows that only evaluate differently share one
training, and so do tables. `--list` says what would run.
"""

import argparse
import ast
import sys
from pathlib import Path
from typing import Any

from deeplab_jax.errors import ConfigError, UserError
from deeplab_jax.output import say
from experiments import plan
from experiments.work import Worker, done, trained


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m experiments.run",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("table", help=f"one of {', '.join(plan.tables())}")
    parser.add_argument("--rows", default="", metavar="TEXT", help="only rows with this in them")
    parser.add_argument("--seeds", default="0", help="comma between them; default 0")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time; default 1")
    parser.add_argument("--out", type=Path, default=Path("results"), help="default results")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="over every row's own, such as data.root=VOC2012; may be given again",
    )
    parser.add_argument("--list", action="store_true", help="say what would run, and run nothing")
    return parser.parse_args(argv)


def value(text: str) -> Any:
    """A Python literal, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def overrides(given: list[str]) -> dict[str, Any]:
    """{"data.root": "VOC2012"} of ["data.root=VOC2012"]."""
    for word in given:
        if "=" not in word:
            raise ConfigError(f"--set {word}: takes KEY=VALUE")
    return {key: value(text) for key, text in (word.split("=", 1) for word in given)}


def listing(jobs: list[plan.Job], seeds: list[int], out: Path) -> str:
    """The arms, their rows and what is there of them."""
    lines = []
    for arm, rows in plan.arms(jobs).items():
        there = sum(trained(rows[0], out, seed) for seed in seeds)
        steps = rows[0].config["train.steps"]
        lines.append(f"{arm}: {steps} steps, {there} of {len(seeds)} seeds trained")
        for job in rows:
            there = sum(done(job, out, seed) for seed in seeds)
            lines.append(f"  {job.row.label}: {there} of {len(seeds)} seeds evaluated")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    args = parse(argv)
    try:
        seeds = [int(seed) for seed in args.seeds.split(",")]
        table = plan.table(args.table)
        jobs = plan.jobs(table.ROWS, overrides(args.set))
        jobs = [job for job in jobs if args.rows in job.row.label]
        if args.list:
            say(listing(jobs, seeds, args.out))
            return 0
        errors = Worker(args.out, args.jobs).work(jobs, seeds)
        for error in errors:
            say(f"error: {error}")
        return 1 if errors else 0
    except UserError as error:
        say(f"error: {error}")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
