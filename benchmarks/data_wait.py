"""The share of training time in which the device waits for data.

python benchmarks/data_wait.py [--root VOC2012] [--config configs/v3plus.py:...] [--steps 20]
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import contest
import data

from deeplab_jax import huge_pages

COLUMNS = ("num_threads", "num_workers", "images/s", "step ms", "waits for data %")


def training(spec: str, overrides: dict, steps: int) -> dict:
    """Figures of `steps` training steps, after as many that do not count."""
    from deeplab_jax import config, models, runtime, train
    from deeplab_jax.data import pipeline

    overrides = overrides | {"train.steps": 2 * steps, "log_every": steps}
    settings = config.load(spec, overrides)
    settings.train.eval_every = settings.train.checkpoint_every = 0
    module = models.build(**settings.model)
    source = pipeline.source(settings.data, settings.data.train_split, settings.model.num_classes)
    variables = train.init_variables(module, settings.seed)
    batches = pipeline.train_iterator(source, settings.data, 0, settings.train.batch_size)
    with tempfile.TemporaryDirectory() as workdir, batches:
        train.train(
            module,
            variables,
            batches,
            settings,
            Path(workdir),
            mesh=runtime.data_mesh(),
            evaluate=lambda *_: None,
            position_check={},
        )
        return json.loads((Path(workdir) / "metrics.jsonl").read_text().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="configs/v3plus.py:mobilenet_v2_torch,voc")
    parser.add_argument("--root", help="VOC2012 folder; else the embedded scenes")
    parser.add_argument("--split", default="train")
    parser.add_argument("--crop", type=int, default=257)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--workers", type=int, nargs="+", default=(0, 2))
    parser.add_argument("--name", default="data_wait", help="of the files in results/")
    args = parser.parse_args()

    os.environ.update(huge_pages.environment(os.environ))  # as our command line sets itself up
    rows, raw = [], []
    with data.voc(args.root) as (root, images):
        for workers in args.workers:
            overrides = {
                "data.root": root,
                "data.train_split": args.split,
                "data.crop_size": (args.crop, args.crop),
                "data.num_threads": args.threads,
                "data.num_workers": workers,
                "train.batch_size": args.batch,
            }
            line = contest.apart(training, args.config, overrides, args.steps)
            rate = line["images_per_second"]
            rows.append([args.threads, workers, rate, 1e3 * args.batch / rate])
            rows[-1].append(100 * line["data_wait_share"])
            raw.append({"num_workers": workers} | line)
    size = f"{args.crop}x{args.crop}, batch {args.batch}"
    title = f"{args.steps} training steps of {args.config}, {size}, {images}"
    contest.write(args.name, title, COLUMNS, rows, raw)


if __name__ == "__main__":
    main()
