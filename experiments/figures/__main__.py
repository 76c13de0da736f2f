"""Figures of the papers, drawn from this code: `pip install -e '.[experiments]'`.

    python -m experiments.figures [NAME ...] --output=DIR [--scene=3] \\
        [--config=configs/v3plus.py] [--workdir=TRAINED] [--without_decoder=TRAINED]

`--workdir` is a run of `--config`, `--without_decoder` one of the same dataset whose logits are
upsampled bilinearly. Without them true one-hot scores at strides 4 and 16 stand for what a network
with and without decoder can do at best, and fields of view are those of an untrained network.

| NAME | figure | drawn from |
|---|---|---|
| atrous_1d | [V2] Fig. 2 | Jacobians of `ops.conv2d`, and its answer to a row of the scene |
| atrous_2d | [V2] Fig. 3 | `ops.conv2d` on the scene at half size, and at rate 2 |
| fields_of_view | [V2] Fig. 4 | gradients of each branch of the ASPP |
| valid_weights | [V3] Fig. 4 | `ops.conv2d` of ones |
| beliefs | [V2] Fig. 5 | every iteration of `crf.mean_field` |
| trimaps | [V2] Fig. 10, [V3+] Fig. 5a | `metrics.boundary_distance`, `tally.Tally` |
| decoder | [V3+] Fig. 5b | the labels near a boundary |
"""

import argparse
import sys
from pathlib import Path

try:
    from experiments.figures.drawing import FIGURES
except ModuleNotFoundError as error:
    if error.name != "matplotlib":
        raise
    sys.exit("error: figures need matplotlib: pip install -e '.[experiments]'")
from deeplab_jax.errors import UserError
from experiments.figures.subject import subject_of


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all of them")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--config", default="configs/v3plus.py")
    parser.add_argument("--scene", type=int, default=3, help="its number in the evaluation split")
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--without_decoder", type=Path)
    flags = parser.parse_args(argv)
    unknown = set(flags.names) - FIGURES.keys()
    if unknown:
        parser.error(f"no figure {', '.join(unknown)}; there are {', '.join(FIGURES)}")
    try:
        subject = subject_of(flags.config, flags.scene, flags.workdir, flags.without_decoder)
        flags.output.mkdir(parents=True, exist_ok=True)
        for name in flags.names or FIGURES:
            path = flags.output / f"{name}.png"
            FIGURES[name](subject).savefig(path, dpi=110)
            print(path)
    except UserError as error:
        parser.exit(error.exit_code, f"error: {error}\n")


if __name__ == "__main__":
    main()
