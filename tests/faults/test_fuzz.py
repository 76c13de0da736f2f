"""Damaged, strange and hostile input by the thousand: a sound result or a UserError, nothing else.

By default a few hundred inputs a property, the same in every run. FUZZ_EXAMPLES=N in the
environment tries N of each, others in every run:

    FUZZ_EXAMPLES=20000 python -m pytest tests/faults/test_fuzz.py -n 0 -s

benchmarks/results/fuzz.md has what such runs found. Of every input the file on disk is real; each
may take seconds, a bounded amount of memory, write no file and start no program.
"""

import contextlib
import datetime
import functools
import io
import json
import os
import resource
import signal
import struct
import sys
import tempfile
import threading
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from conftest import CONFIGS, GOLDEN
from PIL import Image

from deeplab_jax import command_line, importers, models, networks
from deeplab_jax import config as configuration
from deeplab_jax.data import coco_json, files, folder, image_files, labels
from deeplab_jax.errors import ConfigError, DataError, UserError, WeightsError
from deeplab_jax.importers import tf_bundle
from deeplab_jax.importers.readers import open_weights

os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", tempfile.gettempdir() + "/hypothesis")
from absl.testing import flagsaver
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 0))
SECONDS = 20  # an input: far more than any needs, as tests share the machine
PIXELS = 2**20  # `data.max_pixels` here, so that what a header claims is refused early
# That a whole property may add to the memory; hypothesis itself remembers what it has tried.
MEGABYTES = 300 + EXAMPLES * 0.02


def fuzz(examples: int):
    """The settings of a property that tries so many inputs by default."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=datetime.timedelta(seconds=SECONDS),
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


# What nothing here may do, whatever a file says.
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.")
seen_doing: list[str] = []
watched = threading.local()


def _watch(event, arguments):
    if not getattr(watched, "on", False):
        return
    writes = event == "open" and set(str(arguments[1] or "")) & set("wax+")
    if writes or event.startswith(FORBIDDEN):
        seen_doing.append(f"{event} {arguments}")


sys.addaudithook(_watch)


def _too_long(*_):
    raise AssertionError(f"an input took more than {2 * SECONDS} s")


@contextlib.contextmanager
def only(error: type[UserError]):
    """The body may raise this error, in words; and neither hang, write nor run anything."""
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(2 * SECONDS)
    seen_doing.clear()
    watched.on, told = True, "nothing"
    try:
        yield
    except error as caught:
        told = str(caught)
    finally:
        watched.on = False
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert told.strip()
    assert not seen_doing


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    """A folder for the files, one property's at a time."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(autouse=True)
def bounded(monkeypatch):
    """A small limit of pixels; and the test must not grow the memory."""
    monkeypatch.setenv("DEEPLAB_JAX_MAX_PIXELS", str(PIXELS))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    seen_doing.clear()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEGABYTES, f"{grown:.0f} MB more than before"


# --- inputs ---


@st.composite
def mutated(draw, originals, repair=lambda data: data):
    """One of `originals` cut, changed, shuffled; sometimes with its checksums put right again."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        place = st.integers(0, max(0, len(data) - 1))
        start = draw(place)
        end = min(len(data), start + draw(st.integers(1, 64)))
        match draw(st.integers(0, 7)):
            case 0 | 1 | 2 if data:
                data[start] = draw(st.integers(0, 255))
            case 3 if data:
                data[start] ^= 1 << draw(st.integers(0, 7))
            case 4:
                data[start:end] = draw(st.binary(max_size=8))
            case 5:
                del data[start:]
            case 6:
                other = draw(st.sampled_from(originals))
                at = draw(st.integers(0, max(0, len(other) - 1)))
                data[start:end] = other[at : at + end - start]
            case 7:
                data[start:start] = data[start:end]
    return bytes(repair(data) if draw(st.booleans()) else data)


def with_png_sums(data: bytes) -> bytes:
    """A PNG's chunks with sound checksums, as far as there are chunks."""
    data, at = bytearray(data), 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        end = at + 8 + length
        if end + 4 > len(data):
            break
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(data)


def _encoded(picture: Image.Image, name: str, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, name, **options)
    return out.getvalue()


def _pictures() -> dict[str, list[bytes]]:
    """Small valid files, {suffix: contents}."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (9, 11, 3)).astype(np.uint8))
    grey = Image.fromarray(rng.integers(0, 256, (9, 11)).astype(np.uint8))
    ids = Image.fromarray(rng.integers(0, 3, (9, 11)).astype(np.uint8))
    palette = ids.copy()
    palette.putpalette(labels.voc_palette().tobytes())
    deep = Image.fromarray(rng.integers(0, 2**16, (9, 11)).astype(np.uint16))
    turned = Image.Exif()
    turned[0x0112], turned[0x010F] = 6, "maker"
    modes = [rgb, grey, palette, rgb.convert("RGBA"), grey.convert("LA"), grey.convert("1")]
    png = [_encoded(picture, "PNG") for picture in (*modes, deep, ids)]
    png += [
        _encoded(palette, "PNG", transparency=1, bits=4),
        _encoded(palette, "PNG", transparency=bytes([0, 128, 255])),
        _encoded(rgb, "PNG", exif=turned),
        _encoded(grey, "PNG", exif=turned, dpi=(72, 72), icc_profile=b"profile"),
    ]
    long = Image.fromarray(np.full((9, 11), 7.5, np.float32))
    tiff = [
        *(_encoded(picture, "TIFF") for picture in (*modes, deep, long, long.convert("I"))),
        *(_encoded(rgb, "TIFF", compression=c) for c in ("tiff_lzw", "tiff_deflate", "jpeg")),
        _encoded(grey.convert("1"), "TIFF", compression="group4"),
        _encoded(rgb.convert("CMYK"), "TIFF"),
        _encoded(ids, "TIFF", exif=turned),
        _encoded(rgb, "TIFF", save_all=True, append_images=[grey]),
    ]
    jpeg = [
        *(_encoded(picture, "JPEG") for picture in (rgb, grey, rgb.convert("CMYK"))),
        _encoded(rgb, "JPEG", progressive=True, exif=turned),
        _encoded(rgb, "JPEG", dpi=(72, 72), icc_profile=b"profile", comment=b"words"),
    ]
    return {
        "png": png,
        "tif": tiff,
        "jpg": jpeg,
        "bmp": [_encoded(p, "BMP") for p in (rgb, grey, palette, modes[5], rgb.convert("RGBA"))],
        "webp": [_encoded(rgb, "WEBP"), _encoded(modes[3], "WEBP", lossless=True, exif=turned)],
        "ppm": [_encoded(p, "PPM") for p in (rgb, grey, modes[5], deep)]
        + [b"P3 2 1 255\n1 2 3\n4 5 6\n", b"P2 2 1 15\n1 2\n", b"Pf 1 1 -1.0\n\0\0\0\0"],
    }


PICTURES = _pictures()
IMAGES = [content for contents in PICTURES.values() for content in contents]
MASKS = [*PICTURES["png"], *PICTURES["tif"], *PICTURES["bmp"]]


def arrays(dtype, most: int, low: int = 0):
    """[H, W] of few or of all values up to `most`."""

    def made(args):
        seed, height, width, top = args
        rng = np.random.default_rng(seed)
        return rng.integers(low, top, (height, width), np.int64, endpoint=True).astype(dtype)

    side = st.integers(1, 40)
    return st.tuples(st.integers(0, 2**32), side, side, st.integers(max(low, 1), most)).map(made)


# --- images and masks ---


def image_read(path, content: bytes) -> None:
    path.write_bytes(content)
    for encoded in (None, content):
        with only(DataError):
            image = image_files.read_image(path, encoded)
            assert (image.dtype, image.ndim, image.shape[2]) == (np.uint8, 3, 3)
            assert 0 < image.shape[0] * image.shape[1] <= PIXELS


@fuzz(120)
@given(content=st.binary(max_size=400))
def test_images_of_random_bytes(scratch, content):
    image_read(scratch / "image.png", content)


@fuzz(500)
@given(content=mutated(IMAGES, with_png_sums))
@example(content=PICTURES["jpg"][3].replace(b"\x01\x0f\0\2", b"\x01\0\0\2"))  # an odd EXIF tag
@example(content=b"II*\0\x08\0\0\0")
def test_images_that_were_changed(scratch, content):
    image_read(scratch / "image.png", content)


LABELS = np.array([*range(20), *[-1] * 236])
VOC_COLORS = {tuple(rgb): i for i, rgb in enumerate(labels.voc_palette()[:21].tolist())}


def mask_read(path, content: bytes) -> None:
    path.write_bytes(content)
    for in_colors in (False, True):
        with only(DataError):
            mask = image_files.read_mask(path, in_colors=in_colors)
            if mask.ndim == 3:
                assert in_colors
                assert (mask.dtype, mask.shape[2]) == (np.uint8, 3)
            else:
                assert mask.dtype in (np.uint8, np.int32)
                assert mask.ndim == 2
                mask_labelled(mask)


def mask_labelled(mask: np.ndarray) -> None:
    for label_map in (None, LABELS):
        with only(DataError):
            label = files.labelled(mask, 21, 255, label_map, "mask.png")
            assert label.shape == mask.shape
            if label_map is None:  # nothing was clipped on the way
                np.testing.assert_array_equal(label, mask)
            assert ((label == 255) | ((label >= 0) & (label < 21))).all()


@fuzz(100)
@given(content=st.binary(max_size=400))
def test_masks_of_random_bytes(scratch, content):
    mask_read(scratch / "mask.png", content)


@fuzz(400)
@given(content=mutated(MASKS, with_png_sums))
def test_masks_that_were_changed(scratch, content):
    mask_read(scratch / "mask.png", content)


def _stored(kind: str, ids: np.ndarray) -> Image.Image:
    if kind == "1":
        return Image.fromarray(ids.astype(bool))
    picture = Image.fromarray(ids)
    if kind == "P":
        picture.putpalette(labels.voc_palette().tobytes())
    return picture


KINDS = {
    "1": arrays(np.uint8, 1),
    "L": arrays(np.uint8, 255),
    "P": arrays(np.uint8, 255),
    "I;16": arrays(np.uint16, 2**16 - 1),
    "I": arrays(np.int32, 2**31 - 1, low=-(2**31)),
}


@st.composite
def written_masks(draw):
    """(suffix, content, ids): a valid mask."""
    kind = draw(st.sampled_from(list(KINDS)))
    ids = draw(KINDS[kind])
    formats = {"I;16": ["PNG", "TIFF"], "I": ["TIFF"]}.get(kind, ["PNG", "TIFF", "BMP"])
    name, options = draw(st.sampled_from(formats)), {}
    if name == "PNG" and kind == "P" and ids.max() < 16:
        options["bits"] = draw(st.sampled_from([4, 8]))
    if name == "TIFF":
        options["compression"] = draw(st.sampled_from([None, "tiff_lzw", "tiff_deflate"]))
    if name == "PNG" and draw(st.booleans()):
        options["transparency"] = 0
    return name.lower(), _encoded(_stored(kind, ids), name, **options), ids


@fuzz(200)
@given(mask=written_masks())
def test_masks_hold_what_was_stored(scratch, mask):
    suffix, content, ids = mask
    path = scratch / f"mask.{suffix}"
    path.write_bytes(content)
    read = image_files.read_mask(path)
    assert read.dtype in (np.uint8, np.int32)
    np.testing.assert_array_equal(read, ids)
    mask_labelled(read)
    example = {"images": [path], "masks": [path], "num_classes": 21}
    with only(DataError):
        assert files.Pairs(**example).label(0).shape == ids.shape


# --- configurations ---

SPEC = f"{CONFIGS}/v3plus.py:mobilenet_v2,synthetic"


@functools.cache
def known() -> dict:
    return configuration.flat(configuration.load(SPEC))


words = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["auto", "None", "nan", "inf", "-1", "0", "1e999", "(", "()", "(1,)", "True"]),
)
numbers = st.one_of(
    st.integers(-3, 300), st.integers(), st.floats(), st.sampled_from([8, 16, 32, 0.5, 255, 256])
)
plain = st.one_of(st.none(), st.booleans(), numbers, words, st.binary(max_size=4))


def nested(inner, names, depth: int = 2):
    """`inner`, or lists, tuples and mappings of it, so deep."""
    for _ in range(depth):
        inner = st.one_of(
            inner,
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(names, inner, max_size=3),
        )
    return inner


values = nested(plain, st.one_of(words, st.integers(0, 300)))


@st.composite
def keys(draw):
    """Mostly keys there are, else near them, sections, or any words."""
    key = draw(st.sampled_from(sorted(known())))
    match draw(st.integers(0, 9)):
        case 0:
            at = draw(st.integers(0, len(key)))
            return key[:at] + draw(st.text(max_size=2)) + key[at + 1 :]
        case 1:
            return key.rpartition(".")[0] or key
        case 2:
            return draw(st.text(max_size=20))
        case 3:
            return f"{key}.{draw(st.sampled_from(['x', '0', '']))}"
    return key


def checked(config) -> None:
    """As `main.run` begins."""
    configuration.check(config)
    configuration.eval_model(config)
    configuration.to_json(config)
    networks.build(config)


@contextlib.contextmanager
def given_to_program(*arguments):
    """The command line of this process and what is parsed of it, in the body alone."""
    argv = ["deeplab", *arguments]
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)  # where ml_collections looks
        yield argv


@fuzz(300)
@given(overrides=st.dictionaries(keys(), values, min_size=1, max_size=3))
@example(overrides={"model.atrous_rates": 1})
@example(overrides={"eval.eval_scales": [None]})
@example(overrides={"tune_crf.w1": [{}]})
@example(overrides={"log_every": None})
@example(overrides={"crf": {"": None, 0: None}})
@example(overrides={"checkpoint": {0: None}})
def test_overrides_from_python(overrides):
    with only(ConfigError):
        checked(configuration.load(SPEC, overrides))


@pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections
@fuzz(200)
@given(overrides=st.lists(st.tuples(keys(), st.one_of(words, values.map(str))), max_size=3))
@example(overrides=[("model", "{}")])
@example(overrides=[("eval.model.output_stride", "0")])
@example(overrides=[("model.heads", "{'':B''}")])
def test_overrides_on_the_command_line(overrides):
    arguments = [f"--config.{key}={value}" for key, value in overrides]
    with given_to_program(f"--config={SPEC}", "--workdir=w", *arguments) as argv, only(ConfigError):
        checked(command_line.parse(argv).config)


arguments = st.one_of(
    st.sampled_from(["--config", "--config=", "--mode", "--workdir", "--debug", "--processes=1"]),
    st.tuples(st.sampled_from(sorted(command_line.FLAGS)), words).map("--{0[0]}={0[1]}".format),
    words,
)


@pytest.mark.filterwarnings("ignore:the load_module")
@fuzz(100)
@given(given=st.lists(arguments, max_size=4), preset=st.text(max_size=10))
def test_command_lines(given, preset):
    config = f"--config={CONFIGS}/v3plus.py:{preset}"
    with given_to_program(*given, config) as argv, only(ConfigError):
        command_line.parse(argv)


# --- weights ---

WEIGHTS = {
    "backbone/stem/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "half": np.linspace(-1, 1, 5).astype(np.float16),
    "step": np.array(30000, np.int64),
    "flags": np.array([True, False]),
    "none": np.zeros((0, 3), np.uint8),
}
CHECKPOINT = GOLDEN / "tiny_ckpt" / "model.ckpt-30000"


def _npz(save) -> bytes:
    out = io.BytesIO()
    save(out, **WEIGHTS)
    return out.getvalue()


def with_zip_sums(data: bytes) -> bytes:
    """A zip whose stored members have sound checksums, in both of their places."""
    data = bytearray(data)
    at = 0
    while (at := data.find(b"PK\x03\x04", at)) >= 0 and at + 30 <= len(data):
        size, name, extra = struct.unpack("<I4xHH", data[at + 18 : at + 30])
        start = at + 30 + name + extra
        crc = struct.pack("<I", zlib.crc32(data[start : start + size]))
        data[at + 14 : at + 18] = crc
        entry = data.find(struct.pack("<I", at), start + size)  # of the central directory
        if entry >= 42 and data[entry - 42 : entry - 38] == b"PK\x01\x02":
            data[entry - 26 : entry - 22] = crc
        at += 4
    return bytes(data)


def with_index_sums(data: bytes) -> bytes:
    """A checkpoint's index whose blocks have sound checksums, as far as the handles lead."""
    data = bytearray(data)

    def sum_up(offset, size):
        end = offset + size + 1
        if end + 4 <= len(data):
            data[end : end + 4] = struct.pack("<I", tf_bundle._masked_crc(bytes(data[offset:end])))

    with contextlib.suppress(ValueError, IndexError):
        footer, at = bytes(data[-48:-8]), 0
        _, at = tf_bundle._varint(footer, at)
        _, at = tf_bundle._varint(footer, at)
        offset, at = tf_bundle._varint(footer, at)
        size, _ = tf_bundle._varint(footer, at)
        sum_up(offset, size)
        for _, handle in tf_bundle._block(bytes(data), offset, size):
            offset, at = tf_bundle._varint(handle, 0)
            size, _ = tf_bundle._varint(handle, at)
            sum_up(offset, size)
    return bytes(data)


def weights_read(path) -> None:
    with only(WeightsError):
        for lazy in open_weights(path).values():
            with only(WeightsError):
                array = lazy.read()
                assert (array.shape, array.dtype) == (lazy.shape, lazy.dtype)
    with only(WeightsError):
        importers.identify(path)


NPZ = [_npz(np.savez), _npz(np.savez_compressed)]
SAFETENSORS = [
    safetensors.numpy.save(WEIGHTS),
    safetensors.numpy.save(
        {"params/backbone/a": np.zeros(3, np.float32)},
        {importers.HEADER: json.dumps({"model": {"name": "v3"}, "data": {}, "source": "x"})},
    ),
]


@fuzz(150)
@given(content=st.one_of(mutated(NPZ, with_zip_sums), st.binary(max_size=200)))
def test_npz_that_was_changed(scratch, content):
    path = scratch / "w.npz"
    path.write_bytes(content)
    weights_read(path)


@fuzz(150)
@given(content=st.one_of(mutated(SAFETENSORS), st.binary(max_size=200)))
def test_safetensors_that_was_changed(scratch, content):
    path = scratch / "w.safetensors"
    path.write_bytes(content)
    weights_read(path)


INDEX = [CHECKPOINT.with_name(CHECKPOINT.name + ".index").read_bytes()]
SHARD = CHECKPOINT.with_name(CHECKPOINT.name + ".data-00000-of-00001").read_bytes()


@fuzz(100)
@given(index=mutated(INDEX, with_index_sums), length=st.sampled_from([0, 1000, len(SHARD)]))
def test_an_index_of_tensorflow_that_was_changed(scratch, index, length):
    path = scratch / "model.ckpt.index"
    path.write_bytes(index)
    path.with_name("model.ckpt.data-00000-of-00001").write_bytes(SHARD[:length])
    with only(WeightsError):
        weights = open_weights(path)
        for lazy in list(weights.values())[:3]:
            with only(WeightsError):
                assert lazy.read().shape == lazy.shape


@functools.cache
def torch_files() -> list[bytes]:
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array.copy()) for name, array in WEIGHTS.items()}
    found = []
    for content in (tensors, {"epoch": 3, "best": np.float64(0.5), "state_dict": tensors}):
        for zipped in (True, False):
            out = io.BytesIO()
            torch.save(content, out, _use_new_zipfile_serialization=zipped)
            found.append(out.getvalue())
    return found


@fuzz(150)
@given(content=st.one_of(st.deferred(lambda: mutated(torch_files(), with_zip_sums)), st.binary()))
def test_pth_that_was_changed(scratch, content):
    torch_files()
    path = scratch / "w.pth"
    path.write_bytes(content)
    weights_read(path)


@functools.cache
def target():
    """The shapes of a model, and of an own one in late fusion."""
    module = models.build("v3plus", "mobilenet_v2", 3, width_multiplier=0.5)
    image = jnp.zeros((1, 33, 33, 3))
    return jax.eval_shape(lambda: module.init(jax.random.key(0), image))


shapes = st.lists(st.sampled_from([0, 1, 2, 3, 16, 48, 256, 4096]), max_size=5).map(tuple)


@st.composite
def named(draw):
    """{name: array}: what signs a layout, some of what it has, some names of no layout."""
    layout = draw(st.sampled_from(importers.LAYOUTS))
    patterns = [rule.pattern for rule in layout.rules]
    signed = layout.signature if draw(st.integers(0, 5)) else layout.signature[1:]
    of_layout = st.sampled_from(patterns).flatmap(lambda p: st.from_regex(p, fullmatch=True))
    names = [draw(st.from_regex(pattern, fullmatch=True)) for pattern in signed]
    names += draw(st.lists(st.one_of(of_layout, st.text(max_size=8)), max_size=8))
    # Not allocated: what a file claims of its shapes.
    return {name: np.broadcast_to(np.float32(1), draw(shapes)) for name in names}


@fuzz(250)
@given(weights=named())
def test_names_and_shapes_of_any_layout(weights):
    with only(WeightsError):
        assert isinstance(importers.infer(weights), dict)
    wanted = target()  # which JAX's cache may write of
    with only(WeightsError):
        loaded = importers.load(weights, wanted, log=lambda sentence: None)
        assert jax.tree.structure(loaded) == jax.tree.structure(wanted)


# --- text files of datasets ---

json_values = nested(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=10)), st.text(max_size=6)
)


def sometimes(strategy, other=json_values):
    """Mostly the first: an input that is wrong throughout is refused at its first word."""
    return st.integers(0, 9).flatmap(lambda i: strategy if i else other)


rgb = st.lists(st.integers(0, 255), min_size=3, max_size=3)
meant = {
    "color": sometimes(st.one_of(rgb, st.lists(rgb, max_size=3))),
    "ids": sometimes(st.lists(st.one_of(st.integers(0, 300), st.just(70000)), max_size=3)),
}
classes_json = st.fixed_dictionaries(
    {
        "classes": sometimes(
            st.lists(
                sometimes(
                    st.fixed_dictionaries(
                        {"name": sometimes(st.text(max_size=6))},
                        optional=meant | {"nmae": json_values},
                    )
                ),
                max_size=4,
            )
        )
    },
    optional={
        "ignore": sometimes(st.fixed_dictionaries({}, optional=meant | {"others": st.booleans()}))
    },
)


def as_text(value) -> bytes:
    return json.dumps(value).encode()


NESTED = b'{"classes": ' + b"[" * 5000  # deeper than Python's parser goes
LONG = b'{"classes": [{"name": "a", "ids": [' + b"9" * 5000 + b"]}]}"
json_texts = [b"\xef\xbb\xbf{}", b"\xff", NESTED, LONG, b'{"classes": [NaN, Infinity]}']


@fuzz(250)
@given(
    content=st.one_of(
        sometimes(classes_json).map(as_text),
        st.sampled_from(json_texts),
        st.binary(max_size=60),
        mutated([b'{"classes": [{"name": "a", "color": [1, 2, 3], "ids": [7]}], "ignore": {}}']),
    ),
    ignore_label=st.integers(0, 255),
)
def test_classes_json(scratch, content, ignore_label):
    path = scratch / "classes.json"
    path.write_bytes(content)
    with only(DataError):
        found = labels.read(path, ignore_label)
        assert 1 <= len(found.names) <= 256
        assert json.loads(found.to_json())["classes"]
        if (table := found.label_map) is not None:
            assert ((table == ignore_label) | (table < len(found.names))).all()


segmentations = st.one_of(
    st.lists(st.lists(st.floats(-5, 30), min_size=6, max_size=8), max_size=2),
    st.lists(st.lists(st.one_of(st.integers(-5, 30), numbers), min_size=6, max_size=8), max_size=2),
    st.fixed_dictionaries({"size": st.just([8, 10]), "counts": st.just([10, 20, 50])}),
    st.fixed_dictionaries(
        {
            "size": sometimes(st.just([8, 10])),
            "counts": st.one_of(
                st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12),
                st.lists(st.integers(0, 80), max_size=5),
                json_values,
            ),
        }
    ),
    json_values,
)
ids = st.integers(0, 3)
sides = st.one_of(st.integers(-1, 3), st.just(10**9), st.just(10**30), json_values)
coco = st.fixed_dictionaries(
    {
        "images": sometimes(
            st.lists(
                st.fixed_dictionaries(
                    {
                        "id": sometimes(ids),
                        "file_name": sometimes(st.just("a.png"), st.text()),
                        "height": sometimes(st.just(8), sides),
                        "width": sometimes(st.just(10), sides),
                    }
                ),
                max_size=2,
                unique_by=lambda image: str(image["id"]),
            )
        ),
        "annotations": sometimes(
            st.lists(
                st.fixed_dictionaries(
                    {
                        "image_id": sometimes(ids),
                        "category_id": sometimes(ids),
                        "segmentation": segmentations,
                    },
                    optional={"iscrowd": st.one_of(st.integers(0, 1), json_values)},
                ),
                max_size=3,
            )
        ),
        "categories": sometimes(
            st.lists(
                st.fixed_dictionaries(
                    {"id": sometimes(ids), "name": sometimes(st.sampled_from("abcd"), st.text())}
                ),
                max_size=3,
            )
        ),
    }
)


@fuzz(250)
@given(
    content=st.one_of(coco.map(as_text), st.sampled_from(json_texts), st.binary(max_size=60)),
    split=sometimes(st.just("train"), st.text(max_size=4)),
)
@example(content=as_text({"images": [], "annotations": [], "categories": []}), split="")
@example(
    content=as_text(
        {
            "images": [{"id": 0, "file_name": "a.png", "height": 8, "width": False}],
            "annotations": [],
            "categories": [],
        }
    ),
    split="train",
)
def test_annotations_of_coco(scratch, content, split):
    pytest.importorskip("pycocotools")
    root = scratch / "coco"
    if not root.exists():
        (root / "images").mkdir(parents=True)
        Image.new("RGB", (10, 8)).save(root / "images" / "a.png")
    (root / "train.json").write_bytes(content)
    coco_json._parsed.cache_clear()  # it goes by time and size
    with only(DataError):
        names = coco_json.names_of(root, "train")
        source = coco_json.source(root, split, labels.labels(names))
        for i in range(len(source)):
            with only(DataError):
                example = source[i]
                assert example["label"].dtype == np.uint8
                assert example["label"].shape == example["image"].shape[:2]
                found = set(np.unique(example["label"]).tolist())
                assert found <= {*range(len(names)), labels.IGNORE_LABEL}


lines = st.one_of(
    st.sampled_from(["a", "b", "../a", "/etc/passwd", "a\r", "C:\\a", "\0", "x" * 300, "é", ""]),
    st.text(max_size=8),
)


@fuzz(200)
@given(
    content=st.one_of(
        st.lists(lines, max_size=5).map(lambda names: "\n".join(names).encode("utf-8", "replace")),
        st.binary(max_size=40),
    ),
    classes=st.binary(max_size=20),
    split=sometimes(st.just("train"), st.one_of(st.text(max_size=4), st.just("x" * 300))),
)
@example(content=b"", classes=b"", split="x" * 300)
def test_lists_of_a_folder(scratch, content, classes, split):
    root = scratch / "lists"
    if not root.exists():
        for name in ("images", "masks"):
            (root / name).mkdir(parents=True)
            for stem in ("a", "b", "c"):
                Image.new("L", (4, 4)).save(root / name / f"{stem}.png")
    (root / "train.txt").write_bytes(content)
    (root / "classes.txt").write_bytes(classes)
    with only(DataError):
        folder.read_labels(root, 255)
    with only(DataError):
        found = folder.source(root, split, labels.labels((), 3))
        assert len(found) >= 1
        assert set(found.images) <= {*(root / "images").iterdir()}
    with only(DataError):
        names = files.read_list(root, "train")
        files.paired([root / "images" / f"{name}.png" for name in names], [], 3, 255)
