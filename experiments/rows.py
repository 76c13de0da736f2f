"""A row of a table: a published figure and what runs it. Overrides that several tables share."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
COCO, SERVER = "a run on `coco` first", "test server"
JFT = "JFT-300M (not public)"


class Row(NamedTuple):
    """A published figure and what runs it.

    Attributes:
      table, label: where it stands.
      published: mean IoU in %, unless the label says otherwise.
      config: file of configs/ and preset, "v1.py:largefov".
      overrides: {"model.multi_grid": (1, 2, 1)}: what differs from the preset.
      dataset: of the preset; "" where `config` says it.
      needs: what it waits for.
      start: label of the row of the same table that training starts from.
    """

    table: str
    label: str
    published: str
    config: str
    overrides: Mapping[str, object] = MappingProxyType({})
    dataset: str = "voc"
    needs: tuple[str, ...] = ()
    start: str = ""

    def spec(self, dataset: str = "") -> str:
        """ "FILE.py:preset,dataset" for `config.load`, on another dataset if one is given."""
        dataset = dataset or self.dataset
        return f"{CONFIGS / self.config}" + (f",{dataset}" if dataset else "")

    def arguments(self) -> str:
        """For `python -m deeplab_jax.main`, to paste into a shell."""
        words = [f"--config=configs/{self.config},{self.dataset}"]
        for key, value in self.overrides.items():
            text = f"'{value}'" if isinstance(value, tuple) else str(value)
            text = f'"{value}"' if isinstance(value, dict) else text
            words.append(f"--config.{key}={text}")
        return " ".join(words)


def rows(table: str, *given, **common) -> list[Row]:
    """Rows of one table: (label, published, config, overrides, needs...)."""
    return [
        Row(table, label, str(published), config, overrides, needs=tuple(needs), **common)
        for label, published, config, overrides, *needs in given
    ]


def with_crf(table: str, nets, file: str, **common) -> list[Row]:
    """Each network before and after the CRF, two rows, of (label, preset, before, after)."""
    both = []
    for label, preset, before, after in nets:
        both.append((label, before, f"{file}:{preset}", {}))
        both.append((f"{label}, CRF", after, f"{file}:{preset}", CRF))
    return rows(table, *both, **common)


TRAINVAL = {"data.train_split": "trainval"}
CRF = {"eval.crf": True}  # its widths by --mode=tune_crf
# Of [V2].
MSC = {"model.input_scales": (0.5, 0.75, 1.0)}
AUG = {"data.min_scale_factor": 0.5, "data.max_scale_factor": 1.5}
# Of [V3] and [V3+].
AT_8 = {"eval.model.output_stride": 8}
SCALES = {"eval.eval_scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)}
FLIPS = SCALES | {"eval.add_flipped_images": True}
NO_DECODER = {"model.decoder_output_stride": None}
ONE = {"model.decoder_convs": 1}
RESNET, XCEPTION = "v3plus.py:resnet_101", "v3plus.py:xception_65"
