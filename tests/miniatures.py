"""Every published dataset in miniature: tiny files of the real formats, as officially laid out."""

import json

import h5py
import numpy as np
from PIL import Image
from scipy import io as matlab

SIZE = (4, 6)
OUTDOOR = "spatial_envelope_256x256_static_8outdoorcategories"


def picture(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (10, 20, 30)).save(path)


def ids(values, size=SIZE, dtype=np.uint8):
    return np.resize(np.array(values, dtype), size)


def mask(path, values, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids(values, size)).save(path)


def mat(path, **variables):
    path.parent.mkdir(parents=True, exist_ok=True)
    matlab.savemat(path, variables, do_compression=True)


def text(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def voc(root):
    """VOC's own lists a-d, SBD's b, d and e: train_aug is a, b and e."""
    lists = root / "ImageSets" / "Segmentation"
    for split, names in {"train": "ab", "val": "cd", "trainval": "abcd", "test": "t"}.items():
        text(lists / f"{split}.txt", names)
    for name in "abcdet":
        picture(root / "JPEGImages" / f"{name}.jpg")
    for name in "abcd":
        mask(root / "SegmentationClass" / f"{name}.png", [0, 1, 255])
    sbd(root / "benchmark_RELEASE" / "dataset")


def sbd(root):
    text(root / "train.txt", "be")
    text(root / "val.txt", "d")
    for name in "bde":
        picture(root / "img" / f"{name}.jpg")
        fields = {"Segmentation": ids([0, 20]), "CategoriesPresent": np.array([[20]])}
        mat(root / "cls" / f"{name}.mat", GTcls=fields)


CONTEXT_RAW = {  # raw id: name, as a few of the 459; the others are "thing N"
    2: "aeroplane",
    19: "bedclothes",
    104: "cloth",
    300: "pottedplant",
    415: "table",
    459: "wood",
}
CONTEXT_59 = ["aeroplane", "pottedplant", "diningtable", "bedcloth", "clothes", "wood"]


def pascal_context(root):
    text(root / "labels.txt", (f"{i}: {CONTEXT_RAW.get(i, f'thing {i}')}" for i in range(1, 460)))
    others = [f"thing {i}" for i in range(200, 253)]
    names = [*CONTEXT_59[:5], *others, CONTEXT_59[5]]
    text(root / "59_labels.txt", (f"{i}: {name}" for i, name in enumerate(names, start=1)))
    for split, of_split in {"train": "ab", "val": "c", "trainval": "abc"}.items():
        text(root / "ImageSets" / "Main" / f"{split}.txt", of_split)
    for name in "abc":
        picture(root / "JPEGImages" / f"{name}.jpg")
        raw = ids([2, 19, 104, 300, 415, 459, 1, 5], dtype=np.uint16)
        mat(root / "trainval" / f"{name}.mat", LabelMap=raw)


def person_part(root, several=True):
    lists = root / "pascal_person_part" / "pascal_person_part_trainval_list"
    lines = ["/JPEGImages/a.jpg /pascal_person_part_gt/a.png", "/JPEGImages/b.jpg /gt/b.png"]
    text(lists / "train.txt", lines)
    text(lists / "val.txt", ["c"])
    for name in "abc":
        picture(root / "JPEGImages" / f"{name}.jpg")
        mat(root / "Annotations_Part" / f"{name}.mat", anno=person_annotation(several))


def person_annotation(several=True):
    """A person of three parts (the neck over the head) and, on request, a cat of one."""

    def part(name, *pixels):
        where = np.zeros(SIZE, np.uint8)
        where.ravel()[list(pixels)] = 1
        return {"part_name": name, "mask": where}

    parts = [part("lebrow", 0, 1), part("neck", 1, 2), part("rfoot", 3)]
    whole = np.ones(SIZE, np.uint8)
    person = {"class": "person", "class_ind": 15, "mask": whole, "parts": parts}
    cat = {"class": "cat", "class_ind": 8, "mask": whole, "parts": [part("head", 5)]}
    partless = {"class": "person", "class_ind": 15, "mask": whole, "parts": []}
    return {"imname": "a", "objects": [cat, partless, person] if several else [person]}


def camvid(root):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for i in range(count):
            picture(root / split / f"{split}_{i}.png")
            mask(root / f"{split}annot" / f"{split}_{i}.png", range(12))


def cityscapes(root, kind="labelIds", values=(0, 7, 33)):
    """Two cities of each split; coarse ones, too."""
    parts = [("gtFine", split) for split in ("train", "val", "test")]
    parts += [("gtCoarse", split) for split in ("train", "train_extra", "val")]
    for annotation, split in parts:
        for city in ("aachen", "bonn"):
            stem = f"{city}_000000_000019"
            picture(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
            folder = root / annotation / split / city
            mask(folder / f"{stem}_{annotation}_{kind}.png", values)


def ade20k(root):
    for folder, count in (("training", 2), ("validation", 1)):
        for i in range(1, count + 1):
            stem = f"ADE_{folder[:3]}_{i:08d}"
            picture(root / "images" / folder / f"{stem}.jpg")
            mask(root / "annotations" / folder / f"{stem}.png", [0, 1, 150])
    lines = ["Idx\tRatio\tTrain\tVal\tName"]
    lines += [f"{i}\t0.1\t5\t2\tthing {i}, object" for i in range(1, 151)]
    text(root / "objectInfo150.txt", lines)


def sift_flow(root):
    """One test image, three others of which one was never annotated."""
    text(root / "TestSet1.txt", [f"{OUTDOOR}\\coast_b.jpg"])
    for name in ("coast_a", "coast_b", "street_c", "street_urb506"):
        picture(root / "Images" / OUTDOOR / f"{name}.jpg")
        if name == "street_urb506":
            continue
        labels = f"{OUTDOOR}/{name}.mat"
        mat(root / "SemanticLabels" / labels, S=ids([0, 1, 33], dtype=float))
        mat(root / "GeoLabels" / labels, S=ids([-1, 0, 1, 3], dtype=np.int16))


def coco(root):
    """Of train2017 two images are taken: one too small, one of other categories alone are not."""
    size = (40, 60)
    whole = [[0, 0, 60, 0, 60, 40, 0, 40]]
    small = [[0, 0, 20, 0, 20, 20, 0, 20]]
    runs = {"size": list(size), "counts": [0, 80, 2320]}  # the two leftmost columns

    def instances(part, objects):
        images = [
            {"id": i, "file_name": f"{i:012d}.jpg", "height": size[0], "width": size[1]}
            for i in sorted({thing["image_id"] for thing in objects})
        ]
        for image in images:
            picture(root / part / image["file_name"], size)
        content = {"images": images, "annotations": objects, "categories": []}
        text(root / "annotations" / f"instances_{part}.json", [json.dumps(content)])

    def thing(image, category, segmentation, area, crowd=0):
        return {
            "id": 100 * image + category,
            "image_id": image,
            "category_id": category,
            "segmentation": segmentation,
            "area": area,
            "iscrowd": crowd,
        }

    instances(
        "train2017",
        [
            *(thing(7, 18, whole, 2400), thing(7, 1, small, 400), thing(7, 13, small, 400)),
            *(thing(3, 72, whole, 2400), thing(3, 1, runs, 80, crowd=1)),
            thing(4, 1, small, 400),
            thing(5, 13, whole, 2400),  # a stop sign
            thing(6, 1, whole, 2400, crowd=1),
        ],
    )
    instances("val2017", [thing(9, 3, whole, 2400)])


def coco_stuff(root):
    never = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
    text(root / "labels.txt", ["0: unlabeled", *(f"{i}: label {i}" for i in range(1, 183))])
    for part, names in {"train2017": "ab", "val2017": "c"}.items():
        for name in names:
            picture(root / "images" / part / f"{name}.jpg")
            stored = [0, 10, 12, 181, 255]
            assert not never & {i + 1 for i in stored}
            mask(root / "annotations" / part / f"{name}.png", stored)


NYUDV2_SIZE = (40, 60)


def nyudv2(root):
    """Three scenes: a wall 2 m away, whose left edge was not measured."""
    height, width = NYUDV2_SIZE
    rng = np.random.default_rng(0)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = rng.integers(0, 256, (3, 3, width, height)).astype(np.uint8)
        file["depths"] = np.full((3, width, height), 2.0, np.float32)
        raw = np.full((3, width, height), 2.0, np.float32)
        raw[:, :12] = 0
        file["rawDepths"] = raw
        labels = np.zeros((3, width, height), np.uint16)
        labels[:, 1], labels[:, 2] = 1, 894
        file["labels"] = labels
    mat(root / "splits.mat", trainNdxs=np.array([[1.0], [3.0]]), testNdxs=np.array([[2]]))
    classes = np.full((1, 894), 40, np.uint8)
    classes[0, 0] = 3
    mat(root / "classMapping40.mat", mapClass=classes)


# {dataset: (what writes it, a split, images in that)}
WRITERS = {
    "voc": (voc, "train_aug", 3),
    "pascal_context": (pascal_context, "train", 2),
    "pascal_context_59": (pascal_context, "trainval", 3),
    "person_part": (person_part, "train", 2),
    "camvid": (camvid, "trainval", 5),
    "cityscapes": (cityscapes, "trainval", 4),
    "ade20k": (ade20k, "train", 2),
    "sift_flow": (sift_flow, "train", 2),
    "coco": (coco, "train", 2),
    "coco_stuff": (coco_stuff, "trainval", 3),
    "nyudv2": (nyudv2, "train", 2),
}


def same(source, other):
    """Asserts that two sources give the same examples."""
    assert len(source) == len(other)
    for i in range(len(source)):
        one, two = source[i], other[i]
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])
        np.testing.assert_array_equal(other.label(i), two["label"])


def ids_of(source, index=0):
    return set(np.unique(source[index]["label"]).tolist())
