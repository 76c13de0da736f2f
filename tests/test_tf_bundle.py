"""TensorFlow's V2 checkpoints."""

import json
import shutil
import struct
import zlib

import numpy as np
import pytest
from conftest import GOLDEN
from test_readers import BFLOAT16, refused, same

from deeplab_jax.errors import WeightsError
from deeplab_jax.importers import tf_bundle
from deeplab_jax.importers.readers import open_weights

TINY = GOLDEN / "tiny_ckpt"
PREFIX = TINY / "model.ckpt-30000"


# A genuine checkpoint, ...


def rule(name, shape):
    """The values of the golden checkpoint's variables, from their names alone."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    kind = name.rsplit("/", 1)[-1]
    if kind == "moving_variance":
        return (0.5 + rng.random(shape)).astype(np.float32)
    values = rng.standard_normal(shape)
    if kind == "gamma":
        values = 1 + 0.1 * values
    elif kind in ("beta", "moving_mean", "biases"):
        values = 0.1 * values
    elif kind == "depthwise_weights":
        values = values * np.sqrt(2 / (shape[0] * shape[1]))
    else:
        inputs = np.prod(shape[:-1])
        values = values - values.mean((0, 1, 2), keepdims=True)
        values = values * np.sqrt((8 if name.startswith("logits/") else 2) / inputs)
    return values.astype(np.float32)


@pytest.mark.parametrize(
    "path",
    [
        PREFIX,
        TINY,
        TINY / "model.ckpt-30000.index",
        TINY / "model.ckpt-30000.data-00000-of-00001",
    ],
)
def test_a_genuine_checkpoint_gives_back_its_variables(path):
    manifest = json.loads((TINY / "manifest.json").read_text())["kept"]
    weights = open_weights(path)
    assert {name: (list(lazy.shape), lazy.dtype) for name, lazy in weights.items()} == {
        name: (shape, np.dtype(dtype)) for name, shape, dtype in manifest
    }
    assert weights["global_step"].read() == 30000
    for name, shape, _ in manifest:
        if name.endswith("/Momentum"):
            assert not weights[name].read().any()
        elif name != "global_step":
            np.testing.assert_array_equal(weights[name].read(), rule(name, shape))


@pytest.fixture
def copy(tmp_path):
    """A copy of the genuine checkpoint: its prefix."""
    shutil.copytree(TINY, tmp_path / "copy")
    return tmp_path / "copy" / PREFIX.name


def test_a_checkpoint_file_from_another_machine_is_followed(copy):
    state = copy.parent / "checkpoint"
    state.write_text('model_checkpoint_path: "/train/run 3/model.ckpt-30000"\n')
    assert len(open_weights(copy.parent)) == 53


def test_cut_and_missing_shards_are_refused(copy):
    data = copy.with_name(f"{copy.name}.data-00000-of-00001")
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    with pytest.raises(WeightsError, match=rf"{data.name}.*cut short"):
        open_weights(copy)
    data.unlink()
    with pytest.raises(WeightsError, match=f"{data.name}: no such file"):
        open_weights(copy)


def test_a_flipped_byte_of_a_shard_is_found(copy):
    data = copy.with_name(f"{copy.name}.data-00000-of-00001")
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    wrong = []
    for lazy in open_weights(copy).values():
        try:
            lazy.read()
        except WeightsError as error:
            wrong.append(str(error))
    assert len(wrong) == 1
    assert data.name in wrong[0]


def test_a_flipped_byte_of_the_index_is_found(copy):
    index = copy.with_name(f"{copy.name}.index")
    content = index.read_bytes()
    # Of a block nobody needs, the handle of it, and the footer's padding.
    harmless = {*range(2081, 2094), *range(2114, 2117), *range(2120, 2154)}
    errors = []
    for place in {*range(0, 1900, 23), *range(1900, len(content))}:
        flipped = bytearray(content)
        flipped[place] ^= 0x55
        index.write_bytes(flipped)
        try:
            names = open_weights(copy).keys()
        except WeightsError as error:
            errors.append(str(error))
        else:
            assert len(names) == 53
            assert place in harmless
    assert len(errors) > 250
    assert all(copy.name in error for error in errors)
    for length in (0, 7, 47, 48, 1000, len(content) - 1):
        index.write_bytes(content[:length])
        refused(index, "cut short")


# ... and checkpoints made here, with what the genuine one lacks.


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(value):
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def entry(dtype, shape, offset, size, shard=0, more=b""):
    dims = b"".join(field(2, field(1, n)) for n in shape)
    fields = [(1, dtype), (2, dims), (3, shard), (4, offset), (5, size)]
    return b"".join(field(number, value) for number, value in fields) + more


def block(items):
    entries = [varint(0) + varint(len(k)) + varint(len(v)) + k + v for k, v in items]
    return b"".join(entries) + struct.pack("<II", 0, 1)


def write_index(prefix, items, data=bytes(64), header=b"\x08\1", how=b"\0", blocks=None):
    """An index of one block (or of these raw `blocks`), and one shard."""
    out, handles = b"", []
    for content in blocks or [block([(b"", header), *items])]:
        handles.append((b"\xff", varint(len(out)) + varint(len(content))))
        out += content + how + masked(content + how)
    handle, content = varint(len(out)), block(handles)
    out += content + b"\0" + masked(content + b"\0")
    footer = varint(0) + varint(0) + handle + varint(len(content))
    prefix.with_name(prefix.name + ".index").write_bytes(
        out + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    )
    prefix.with_name(prefix.name + ".data-00000-of-00001").write_bytes(data)
    return prefix


def test_crc32c():
    assert tf_bundle.crc32c(b"123456789") == 0xE3069283
    rng = np.random.default_rng(0)
    for size in (*range(9), 15, 16, 17, 64, 1000, 4097):
        data = rng.bytes(size)
        assert tf_bundle.crc32c(data) == crc32c(data), size


def test_every_dtype_of_a_checkpoint(tmp_path):
    numbers = {1: "f4", 2: "f8", 3: "i4", 4: "u1", 9: "i8", 10: "?", 14: BFLOAT16, 19: "f2"}
    arrays, items, data = {}, [], b""
    for number, dtype in numbers.items():
        array = np.arange(6).astype(dtype).reshape(2, 1, 3)
        more = varint(6 << 3 | 5) + masked(array.tobytes())
        items.append(
            (b"v%02d" % number, entry(number, (2, 1, 3), len(data), array.nbytes, more=more))
        )
        arrays[f"v{number:02d}"] = array
        data += array.tobytes()
    items.append((b"words", entry(7, (3,), 0, 5)))  # strings are no weights
    same(write_index(tmp_path / "model.ckpt", items, data), arrays)


ONE = (b"x", entry(1, (4,), 0, 16))


@pytest.mark.parametrize(
    ("items", "options", "message"),
    [
        ([ONE], {"how": b"\1"}, "Snappy"),
        ([ONE], {"how": b"\7"}, "unknown way"),
        ([ONE], {"header": field(1, 1) + field(2, 1)}, "big-endian"),
        ([ONE], {"header": b""}, "shard 0 of 0"),
        ([ONE], {"header": field(1, 2)}, "00000-of-00002: no such file"),
        ([ONE], {"header": field(1, 1)[:1]}, "does not end"),
        ([ONE], {"header": b"\x0f"}, "wire type"),
        ([ONE], {"header": b"\x12\x7f"}, "too early"),
        ([ONE], {"blocks": [block([ONE])]}, "begin with its header"),
        ([ONE], {"blocks": [block([])]}, "empty"),
        ([ONE], {"blocks": [b"\0\1\1x" + struct.pack("<II", 0, 1)]}, "outside of its block"),
        ([ONE], {"blocks": [b"\5\0\0" + struct.pack("<II", 0, 1)]}, "outside of its block"),
        ([ONE], {"blocks": [bytes(3)]}, "outside of the index"),
        ([ONE, ONE], {}, "out of order"),
        ([(b"x" * 2000, ONE[1])], {}, "outside of its block"),
        ([(b"\xff", ONE[1])], {}, "UnicodeDecodeError"),
        ([(b"x", entry(1, (4,), 0, 16, more=field(7, b"")))], {}, "partitioned"),
        ([(b"\0x", b"")], {}, "partitioned"),
        ([(b"x", entry(8, (2,), 0, 16))], {}, "dtype 8"),
        ([(b"x", entry(1, (4,), 0, 16, shard=1))], {}, "shard 1 of 1"),
        ([(b"x", entry(1, (4,), 49, 16))], {}, "cut short"),
        ([(b"x", entry(1, (4,), 2**64 - 16, 16))], {}, "cut short"),
        ([(b"x", entry(1, (4,), 0, 12))], {}, "12 bytes for shape"),
        ([(b"x", entry(1, (2**64 - 1,), 0, 16))], {}, "16 bytes for shape"),
        ([(b"x", entry(1, (10**12,), 0, 4 * 10**12))], {}, "cut short"),
        ([(b"x", entry(1, (0, 2**64 - 1), 0, 0))], {}, "claims the shape"),
        ([(b"x", entry(1, (1,) * 99, 0, 4))], {}, "claims the shape"),
        ([(b"x", field(1, 1) + field(2, field(3, 1)) + field(5, 4))], {}, "unknown rank"),
    ],
)
def test_malformed_checkpoints_are_refused(tmp_path, items, options, message, little_memory):
    refused(write_index(tmp_path / "model.ckpt", items, **options), message)


def test_garbage_with_a_true_checksum_is_refused(tmp_path):
    rng, errors = np.random.default_rng(0), []
    whole = np.frombuffer(block([(b"", field(1, 1)), ONE]), np.uint8)
    for _ in range(300):
        content = whole.copy()
        content[rng.integers(0, len(content), 2)] = rng.integers(0, 256, 2)
        path = write_index(tmp_path / "model.ckpt", [], blocks=[content.tobytes()])
        try:
            assert all(lazy.read().nbytes <= 64 for lazy in open_weights(path).values())
        except WeightsError as error:
            errors.append(str(error))
    assert len(errors) > 100
    assert all("model.ckpt" in error for error in errors)
