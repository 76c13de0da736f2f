import json
import pickle
import shutil
import struct
import sys
import tracemalloc
import zipfile
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from conftest import GOLDEN

from deeplab_jax.errors import WeightsError
from deeplab_jax.importers import tf_bundle
from deeplab_jax.importers.readers import open_weights

TINY = GOLDEN / "tiny_ckpt"
PREFIX = TINY / "model.ckpt-30000"
BFLOAT16 = np.dtype(jnp.bfloat16)


def same(path, arrays):
    """Asserts that the file holds just these arrays, in its headers as in its values."""
    weights = open_weights(path)
    assert weights.keys() == arrays.keys()
    for name, array in arrays.items():
        lazy = weights[name]
        assert (lazy.shape, lazy.dtype) == (array.shape, array.dtype.newbyteorder("="))
        read = lazy.read()
        assert read.dtype == lazy.dtype
        assert read.flags.writeable
        np.testing.assert_array_equal(read, array)


def refused(path, message, *, at_read=False):
    """Asserts a WeightsError that names the file, on opening or (at_read) only on reading."""
    opened = open_weights(path) if at_read else {}

    def attempt():
        return [lazy.read() for lazy in opened.values()] if at_read else open_weights(path)

    with pytest.raises(WeightsError, match=message) as caught:
        attempt()
    assert path.name.partition(".data-")[0] in str(caught.value)


class Evil:
    """Unpickled, it leaves a canary."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return (open, (self.canary, "w"))


@pytest.fixture
def little_memory():
    """The test may take 32 MB of Python's memory."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**25


ARRAYS = {
    "a/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7,
    "half": np.linspace(-1, 1, 5).astype(np.float16),
    "double": np.array([[np.pi]]),
    "step": np.array(30000, np.int64),
    "flags": np.array([True, False]),
    "none": np.zeros((0, 3), np.uint8),
}


# Which file is meant.


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.npz", "no such file. Read are .npz"),
        ("model.ckpt-7", "no such file"),
        ("model.ckpt-7.data-00000-of-00001", r"model.ckpt-7.index: no such file"),
        ("weights.h5", "not a weight file known here. Read are"),
        ("graph.pb", "give the checkpoint"),
        ("model.ckpt.meta", "give the checkpoint"),
        ("v1.ckpt", "V1 checkpoint"),
        ("broken.npz", "BadZipFile"),
        ("broken.safetensors", "Error"),
        ("broken.index", "does not end as an index"),
        ("folder", "without TensorFlow's `checkpoint` file(.|\n)*model.ckpt-7.index"),
        ("empty", "has no line model_checkpoint_path"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, name, message):
    for file in ("weights.h5", "graph.pb", "model.ckpt.meta"):
        (tmp_path / file).write_bytes(b"anything")
    for file in ("broken.npz", "broken.safetensors", "broken.index"):
        (tmp_path / file).write_bytes(b"PK\x03\x04" + bytes(60))
    (tmp_path / "v1.ckpt").write_bytes(bytes(40) + tf_bundle.MAGIC)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.ckpt-7.index").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "checkpoint").touch()
    refused(tmp_path / name, message)


# .npz


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_gives_back_its_arrays(tmp_path, save):
    fortran = np.asfortranarray(ARRAYS["a/kernel"])
    arrays = ARRAYS | {"fortran": fortran, "big": ARRAYS["double"].astype(">f8")}
    save(tmp_path / "w.npz", **arrays)
    same(tmp_path / "w.npz", arrays)


def test_only_the_member_asked_for_is_read(tmp_path):
    np.savez(tmp_path / "w.npz", good=np.ones(3), bad=np.full(999, 7.0))
    content = (tmp_path / "w.npz").read_bytes()
    (tmp_path / "w.npz").write_bytes(content.replace(np.full(9, 7.0).tobytes(), bytes(72)))
    weights = open_weights(tmp_path / "w.npz")
    np.testing.assert_array_equal(weights["good"].read(), np.ones(3))
    with pytest.raises(WeightsError, match=r"w\.npz.*CRC"):
        weights["bad"].read()


def test_npz_with_flipped_bytes_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "w.npz", x=np.arange(3000))
    content = bytearray((tmp_path / "w.npz").read_bytes())
    content[1000:1010] = bytes(10)
    (tmp_path / "w.npz").write_bytes(content)
    refused(tmp_path / "w.npz", "cannot be read", at_read=True)


def test_npz_never_unpickles(tmp_path):
    np.savez(tmp_path / "w.npz", x=np.array([Evil(tmp_path / "canary")], object))
    refused(tmp_path / "w.npz", "Python objects")
    assert not (tmp_path / "canary").exists()


def npy_header(shape, descr="<f4", version=1):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY" + struct.pack("<BBH", version, 0, len(text)) + text


def write_npz(path, content):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(npy_header((10**12,)) + bytes(16), "not its size", id="large"),
        pytest.param(npy_header((10**30, 10**30)) + bytes(16), "not its size", id="huge"),
        pytest.param(npy_header((-2, -2)) + bytes(16), "claims the shape", id="negative"),
        pytest.param(npy_header((0, 10**18)), "claims the shape", id="empty but huge"),
        pytest.param(npy_header((4,)) + bytes(15), "not its size", id="too short"),
        pytest.param(npy_header((4,)) + bytes(17), "not its size", id="too long"),
        pytest.param(npy_header((4,), "<U1") + bytes(16), "only plain numbers", id="text"),
        pytest.param(npy_header((4,), version=9) + bytes(16), "version", id="version"),
        pytest.param(npy_header("(" * 3000), "cannot be read", id="nested"),
        pytest.param(b"", "cannot be read", id="nothing"),
        pytest.param(b"no array", "magic", id="no array"),
    ],
)
def test_untrue_npy_headers_are_refused_before_memory_is_taken(
    tmp_path, content, message, little_memory
):
    refused(write_npz(tmp_path / "w.npz", content), message)


def test_a_header_that_unfolds_is_refused(tmp_path, request):
    content = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**26) + b" " * 2**26
    path = write_npz(tmp_path / "w.npz", content)
    request.getfixturevalue("little_memory")  # from here on
    refused(path, "header of 67108864 bytes")


def test_npy_headers_of_version_2_are_read(tmp_path):
    text = npy_header((2, 2))[10:]
    content = b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text + bytes(16)
    same(write_npz(tmp_path / "w.npz", content), {"x": np.zeros((2, 2), np.float32)})


def test_untrue_sizes_of_the_zip_are_refused(tmp_path, little_memory):
    header = npy_header((2**28,))
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("x.npy", header + bytes(16))
    content = bytearray((tmp_path / "w.npz").read_bytes())
    at = content.index(b"PK\x01\x02") + 24  # the uncompressed size in the zip's directory
    content[at : at + 4] = struct.pack("<I", len(header) + 2**30)
    (tmp_path / "w.npz").write_bytes(content)
    refused(tmp_path / "w.npz", "not its size")


@pytest.mark.parametrize(
    ("name", "compression", "message"),
    [
        ("x.txt", zipfile.ZIP_STORED, "not an .npy array"),
        ("x.npy", zipfile.ZIP_BZIP2, "compressed in a way"),
    ],
)
def test_foreign_zips_are_refused(tmp_path, name, compression, message):
    with zipfile.ZipFile(tmp_path / "w.npz", "w", compression) as archive:
        archive.writestr(name, npy_header((1,)) + bytes(4))
    refused(tmp_path / "w.npz", message)


# .safetensors


def test_safetensors_give_back_their_arrays(tmp_path):
    arrays = ARRAYS | {"brain": np.arange(6).astype(BFLOAT16).reshape(3, 2)}
    safetensors.numpy.save_file(arrays, tmp_path / "w.safetensors")
    same(tmp_path / "w.safetensors", arrays)


@pytest.mark.parametrize(
    "header",
    [
        {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1600]}},
        {"x": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}},
        {"x": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 16]}},
        {"x": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]}},
        {"x": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
        {"x": {"dtype": "F8_E4M3", "shape": [16], "data_offsets": [0, 16]}},
        {"x": {"dtype": "F32", "shape": [0, 10**18], "data_offsets": [0, 0]}},
        {"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}},
        {"x": 1},
        [],
    ],
)
def test_untrue_safetensors_headers_are_refused(tmp_path, header, little_memory):
    text = json.dumps(header).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    refused(tmp_path / "w.safetensors", "cannot be read")


@pytest.mark.parametrize("length", [17, 2**31, 2**63])
def test_a_safetensors_header_longer_than_the_file_is_refused(tmp_path, length, little_memory):
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", length) + b"{}" + bytes(14))
    refused(tmp_path / "w.safetensors", "cannot be read")


# TensorFlow: a genuine checkpoint, ...


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


# PyTorch


def test_without_torch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    (tmp_path / "w.pth").write_bytes(b"\x80\x02N.")
    refused(tmp_path / "w.pth", r"pip install 'deeplab_jax\[torch\]'")


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def tensors(torch, arrays=ARRAYS):
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("ending", ["pth", "pth.tar", "pt", "bin", "ckpt"])
def test_torch_gives_back_its_arrays(tmp_path, torch, zipped, ending):
    state = tensors(torch)
    state["brain"] = torch.arange(6).reshape(2, 3).to(torch.bfloat16)
    state["turned"] = torch.nn.Parameter(state["a/kernel"].permute(2, 0, 1))
    path = tmp_path / f"w.{ending}"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    same(
        path,
        ARRAYS
        | {
            "brain": np.arange(6).reshape(2, 3).astype(BFLOAT16),
            "turned": ARRAYS["a/kernel"].transpose(2, 0, 1),
        },
    )


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("key", ["state_dict", "model_state", "model_state_dict", "model"])
def test_training_checkpoints_are_looked_into(tmp_path, torch, zipped, key):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    torch.nn.DataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "arch": "deeplab",
        "best_pred": np.float64(0.7),
        "best_score": np.float32(0.7),
        key: torch.nn.DataParallel(model).state_dict() | {"module.version": 2},
        "optimizer": optimizer.state_dict(),
    }
    path = tmp_path / "w.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    same(path, {name: value.numpy() for name, value in model.state_dict().items()})


def test_module_stays_where_not_every_name_has_it(tmp_path, torch):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pth")
    assert open_weights(tmp_path / "w.pth").keys() == {"module.a", "b"}


def test_scalars_of_an_older_numpy(tmp_path, torch):
    content = {"state_dict": tensors(torch), "best_score": np.float64(0.5)}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    raw = (tmp_path / "w.pth").read_bytes()
    assert b"numpy._core.multiarray" in raw
    (tmp_path / "w.pth").write_bytes(raw.replace(b"numpy._core", b"numpy.core"))
    same(tmp_path / "w.pth", ARRAYS)


@pytest.mark.parametrize("how", ["zip", "legacy", "plain", "newer"])
def test_torch_files_never_run_code(tmp_path, torch, how):
    path, content = tmp_path / "w.pth", {"x": torch.ones(1), "y": Evil(tmp_path / "canary")}
    if how in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    else:
        path.write_bytes(pickle.dumps(content["y"], protocol=2 if how == "plain" else 4))
    refused(path, r"nothing was run. Save model.state_dict\(\) alone")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_model_is_refused(tmp_path, torch, zipped):
    torch.save(torch.nn.ReLU(), tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "w.pt", "it holds torch.nn.modules.activation.ReLU beside tensors")


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"state_dict": {"lr": 0.1}}])
def test_torch_files_without_tensors_are_refused(tmp_path, torch, content):
    torch.save(content, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "no mapping of tensors")


def test_a_spread_tensor_takes_no_memory_before_it_is_read(tmp_path, torch, little_memory):
    small = torch.arange(3.0)[:, None].expand(3, 5)
    torch.save({"x": torch.zeros(1).expand(10**10), "small": small}, tmp_path / "w.pth")
    weights = open_weights(tmp_path / "w.pth")
    assert weights["x"].shape == (10**10,)
    np.testing.assert_array_equal(weights["small"].read(), np.arange(3.0)[:, None] * np.ones(5))
    torch.save({"x": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "claims the shape")


def test_other_tensors_are_refused(tmp_path, torch):
    torch.save({"x": torch.ones(2, 2).to_sparse()}, tmp_path / "sparse.pth")
    refused(tmp_path / "sparse.pth", "dense")
    torch.save({"x": torch.ones(2, dtype=torch.complex64)}, tmp_path / "complex.pth")
    refused(tmp_path / "complex.pth", "complex64")


def test_damaged_torch_files_are_refused(tmp_path, torch):
    torch.save({"x": torch.full((999,), 7.0)}, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    sevens = np.full(9, 7, np.float32).tobytes()
    (tmp_path / "w.pth").write_bytes(content.replace(sevens, bytes(36), 1))
    refused(tmp_path / "w.pth", "data/0 in it is damaged", at_read=True)
    (tmp_path / "w.pth").write_bytes(content[:2000])
    refused(tmp_path / "w.pth", "cannot be read")
    (tmp_path / "w.pth").write_bytes(b"<!DOCTYPE html>")
    refused(tmp_path / "w.pth", "neither as a zip nor as a pickle")
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", bytes(1000))
    refused(tmp_path / "w.pth", "compressed")

    torch.save({"x": torch.ones(999)}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "w.pth").read_bytes()
    for length in (1, 20, 100, 300, len(content) - 1):
        (tmp_path / "w.pth").write_bytes(content[:length])
        refused(tmp_path / "w.pth", r"cannot be read|is the file damaged")


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_tensors_larger_than_the_file_are_refused(tmp_path, torch, zipped, number):
    path = tmp_path / "w.pth"
    torch.save({"x": torch.ones(999)}, path, _use_new_zipfile_serialization=zipped)
    true = b"M" + struct.pack("<H", 999)  # pickled: the storage's elements, then the shape

    def change(content):
        first, second, rest = content.split(true)
        false = b"J" + struct.pack("<i", 2**28)
        return first + (false + second + true, true + second + false)[number] + rest

    if zipped:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, change(content) if name.endswith("data.pkl") else content)
    else:
        path.write_bytes(change(path.read_bytes()))
    if (zipped, number) == (True, 0):  # only as many bytes as there are become a storage
        assert open_weights(path)["x"].shape == (999,)
    else:
        refused(path, "cannot be read")
