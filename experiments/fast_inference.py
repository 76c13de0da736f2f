"""What folding batch norm, and bfloat16, change in the labels of a split, against plain float32.

    python experiments/fast_inference.py --config=configs/zoo.py:mobilenetv2_coco_voc_trainval \
        --weights=WEIGHTS --root=VOC_SUBSET --classes 0 8 10 12 13 15 17

`--weights` is what `init_from` takes. Prints a table: the share of all pixels and of the worst
image's pixels that keep their label, and mean IoU over the classes.
"""

import argparse

import numpy as np

from deeplab_jax import config as configuration
from deeplab_jax import models, networks
from deeplab_jax import train as training
from deeplab_jax.data import pipeline
from deeplab_jax.evaluate import Tally
from deeplab_jax.metrics import mean_iou
from deeplab_jax.models.folding import fold_batch_norm
from deeplab_jax.predict import predict


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", required=True, help="FILE.py:preset")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--root", required=True, help="where the configuration's dataset lies")
    parser.add_argument("--images", type=int, help="of the split, evenly spread; all if not given")
    parser.add_argument("--classes", type=int, nargs="+", help="to average over; all if not given")
    arguments = parser.parse_args()
    overrides = {"init_from": arguments.weights, "data.root": arguments.root}
    config = configuration.load(arguments.config, overrides)
    source = pipeline.source(config.data, config.eval.split, config.model.num_classes)
    chosen = np.linspace(0, len(source) - 1, arguments.images or len(source)).astype(int)

    _, exact = networks.build(config)
    keywords = configuration.eval_model(config)
    half = models.build(**{**keywords, "dtype": "bfloat16"})
    variables = networks.load(config, training.init_variables(exact, 0, 3))
    folded = fold_batch_norm(exact, variables)
    ways = {
        "float32": (exact, variables),
        "float32, folded": (exact, folded),
        "bfloat16, folded": (half, folded),
    }
    options = configuration.predict_options(config)
    tallies = {way: Tally(config.model.num_classes, config.data.ignore_label) for way in ways}
    alike = {way: [] for way in ways}
    for i in chosen:
        example = source[i]
        answers = {
            way: predict(*network, example["image"], **options) for way, network in ways.items()
        }
        for way, labels in answers.items():
            alike[way].append((labels == answers["float32"]).mean())
            tallies[way].add(example["label"], labels)
    print(f"{len(chosen)} images\n| way | pixels alike, % | worst image | mean IoU |")
    print("|---|---|---|---|")
    for way, tally in tallies.items():
        shares = 100 * np.array(alike[way])
        iou = mean_iou(tally.total, arguments.classes)
        print(f"| {way} | {shares.mean():.3f} | {shares.min():.2f} | {iou:.4f} |")


if __name__ == "__main__":
    main()
