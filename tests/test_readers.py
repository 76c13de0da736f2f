"""Weight files in general, .npz and .safetensors."""

import json
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from deeplab_jax.errors import WeightsError
from deeplab_jax.importers import tf_bundle
from deeplab_jax.importers.readers import open_weights

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
