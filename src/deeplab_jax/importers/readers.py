"""Weight files as {name: array not read yet}: shapes first, so a caller can refuse them unread.

A weight file is a stranger's. Nothing of it is ever run, its sizes are checked against its true
length, and whatever is wrong with it becomes a WeightsError that names it.
"""

import contextlib
import dataclasses
import functools
import io
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import safetensors
from numpy.lib import format as npy

from deeplab_jax.errors import WeightsError, first_few
from deeplab_jax.importers import tf_bundle

FORMATS = (
    "Read are .npz, .safetensors, PyTorch's .pth .pth.tar .pt .bin .ckpt, and TensorFlow V2 "
    "checkpoints: PREFIX or PREFIX.index, or a folder with a `checkpoint` file"
)

# By name, as numpy, torch and TensorFlow agree on them.
_DTYPES = {
    np.dtype(t).name: np.dtype(t)
    for t in (
        *(np.bool, np.int8, np.int16, np.int32, np.int64),
        *(np.uint8, np.uint16, np.uint32, np.uint64),
        *(jnp.bfloat16, np.float16, np.float32, np.float64),
    )
}
_SAFETENSORS = {
    **{"BOOL": "bool", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"},
    **{"U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64"},
    **{"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"},
}
_NPY_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_MAX_ELEMENTS = 10**12

# (name, shape, name of the dtype, function reading the array)
_Entry = tuple[str, tuple[int, ...], str, Callable[[], np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Lazy:
    """An array of a file, not read yet.

    Attributes:
      shape: as the file's header has it.
      dtype: a native numpy dtype: bool, integer or float, bfloat16 among them.
      read: returns the array, newly allocated. Raises WeightsError when it is damaged.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


def open_weights(path: Path) -> dict[str, Lazy]:
    """The arrays of a weight file by name; none of them is read yet.

    Args:
      path: .npz; .safetensors; PyTorch's .pth, .pt, .bin or .ckpt (a state dict, or a training
        checkpoint that holds one); a TensorFlow V2 checkpoint's PREFIX, PREFIX.index or folder.

    Raises:
      WeightsError: no such file, another format, damaged, untrue sizes, or objects other than
        arrays of numbers.
    """
    path = Path(path)
    with _blaming(path):
        weights = {}
        for name, shape, dtype, read in _entries(path):
            if name in weights:
                raise ValueError(f"{name} is in it twice")
            weights[name] = _lazy(path, name, shape, dtype, read)
        return weights


def _lazy(path: Path, name: str, shape: tuple[int, ...], dtype: str, read: Callable) -> Lazy:
    if dtype not in _DTYPES:
        raise ValueError(f"{name} is of type {dtype}; only plain numbers are read")
    large = any(not 0 <= size < _MAX_ELEMENTS for size in shape)
    if large or len(shape) > 32 or math.prod(shape) >= _MAX_ELEMENTS:
        raise ValueError(f"{name} claims the shape {shape}")

    def checked() -> np.ndarray:
        with _blaming(path):
            array = read()
            if array.shape != shape or array.dtype.name != dtype:
                raise ValueError(f"{name} is no longer what it was when the file was opened")
            return array.astype(_DTYPES[dtype], copy=False)  # big-endian becomes native

    return Lazy(shape, _DTYPES[dtype], checked)


@contextlib.contextmanager
def _blaming(path: Path) -> Iterator[None]:
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        # Everything: what parsers raise on damaged or hostile files has no end (zlib.error,
        # struct.error, RecursionError, MemoryError, ...). Torch's messages go on for pages.
        what = (str(error).splitlines() or [""])[0]
        if type(error) is not ValueError:
            what = f"{type(error).__name__}: {what}"
        raise WeightsError(f"{path}: cannot be read as weights ({what})") from error


def _entries(path: Path) -> Iterator[_Entry]:
    if (prefix := tf_bundle.find(path)) is not None:
        return tf_bundle.entries(prefix)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file. {FORMATS}")
    if path.suffix == ".npz":
        return _npz(path)
    if path.suffix == ".safetensors":
        return _safetensors(path)
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(max(0, path.stat().st_size - 8))
        end = file.read()
    if end == tf_bundle.MAGIC:
        raise WeightsError(
            f"{path}: a TensorFlow V1 checkpoint (all in one file), which is not read here; save "
            "it again as V2 and give its PREFIX.index"
        )
    # x.pth.tar is the habit of a generation of PyTorch trainers; no tar has anything to do with it.
    name = path.name.removesuffix(".tar")
    if name.endswith((".pth", ".pt", ".bin", ".ckpt")):
        return _torch(path, start)
    if path.suffix in (".meta", ".pb"):
        raise WeightsError(
            f"{path}: a TensorFlow graph; give the checkpoint beside it, PREFIX.index with "
            "PREFIX.data-00000-of-00001"
        )
    raise WeightsError(f"{path}: not a weight file known here. {FORMATS}")


def metadata(path: Path) -> dict[str, str]:
    """The texts in the header of a .safetensors file; {} for any other file."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path}: not a readable .safetensors file ({error})") from error


def _npz(path: Path) -> Iterator[_Entry]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.filename.endswith(".npy"):
                raise ValueError(f"it holds {info.filename}, which is not an .npy array")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{info.filename} is compressed in a way numpy does not write")
            with archive.open(info) as member:
                start = member.read(12)  # magic, version, length of the header in 2 or 4 bytes
                version = npy.read_magic(io.BytesIO(start))
                if version not in _NPY_HEADERS:
                    raise ValueError(f"{info.filename} has a header of version {version}")
                length = int.from_bytes(start[8 : 10 if version == (1, 0) else 12], "little")
                if length > 2**14:  # no array of numbers needs that; zeros may unfold to it
                    raise ValueError(f"{info.filename} has a header of {length} bytes")
                header = io.BytesIO(start[8:] + member.read(length))
            shape, _, dtype = _NPY_HEADERS[version](header)
            if dtype.hasobject:
                raise ValueError(f"{info.filename} holds Python objects, which may run code")
            size = 8 + header.tell() + math.prod(shape) * dtype.itemsize
            # The sizes of the zip may be untrue as well: deflate shrinks 1032 times at most.
            most = min(info.compress_size, path.stat().st_size) * 1032 + 1032
            if size != info.file_size or size > most:
                raise ValueError(
                    f"{info.filename} claims the shape {shape} of {dtype}, which is not its size"
                )
            name = info.filename.removesuffix(".npy")
            yield name, shape, dtype.name, functools.partial(_read_npy, path, info)


def _read_npy(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    with zipfile.ZipFile(path) as archive, archive.open(info) as member:
        # allow_pickle=False: an object array would run code of whoever wrote the file.
        array = npy.read_array(member, allow_pickle=False)
        member.read(1)  # at the end, where zipfile compares checksums
    return array


def _safetensors(path: Path) -> Iterator[_Entry]:
    file = safetensors.safe_open(path, framework="numpy")  # compares the header with the length
    for name in file.keys():
        header = file.get_slice(name)
        dtype = header.get_dtype()
        shape = tuple(header.get_shape())
        yield name, shape, _SAFETENSORS.get(dtype, dtype), functools.partial(file.get_tensor, name)


class _Ignored:
    """Stands in for numpy's scalars in a checkpoint (a best score, say): nobody needs them."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


# What a pickled numpy scalar calls; _Ignored in its place keeps numpy off a stranger's data.
_SCALARS = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
)


def _torch(path: Path, start: bytes) -> Iterator[_Entry]:
    try:
        import torch  # large, and needed here only
    except ImportError as error:
        raise WeightsError(
            f"{path}: reading it needs PyTorch ({error}): pip install 'deeplab_jax[torch]'"
        ) from error
    zipped = start == b"PK\x03\x04"
    if not zipped and start[:1] != b"\x80":
        raise ValueError("it begins neither as a zip nor as a pickle of torch.save")
    if zipped:
        with zipfile.ZipFile(path) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError(
                    "it is compressed inside, as TorchScript is; torch.save model.state_dict()"
                )
    try:
        # The warnings advise whoever wrote the call.
        with (
            torch.serialization.safe_globals([(_Ignored, name) for name in _SCALARS]),
            warnings.catch_warnings(action="ignore"),
        ):
            content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise WeightsError(
            f"{path}: it holds {match[1] if match else 'something'} beside tensors, and loading "
            "that may run code; nothing was run. Save model.state_dict() alone (or is the file "
            "damaged?)"
        ) from error

    tensors = _state_dict(torch, content)
    if not tensors:
        seen = first_few(content) if isinstance(content, Mapping) else type(content).__name__
        raise WeightsError(f"{path}: no mapping of tensors was found in it. It holds\n{seen}")
    sound = functools.cache(functools.partial(_check_zip, path)) if zipped else lambda: None
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(f"{name} is not a dense tensor")
        dtype = str(tensor.dtype).removeprefix("torch.")
        # The values may be one spread out over the shape: only reading makes them many.
        read = functools.partial(_read_tensor, torch, tensor.detach(), sound)
        yield name, tuple(tensor.shape), dtype, read


def _state_dict(torch, content) -> dict:
    """The {name: tensor} in what torch.load gave, without DataParallel's "module."."""
    if not isinstance(content, Mapping):
        return {}
    for key in ("state_dict", "model_state", "model_state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {
        k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, torch.Tensor)
    }
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): v for name, v in tensors.items()}
    return tensors


def _read_tensor(torch, tensor, sound: Callable) -> np.ndarray:
    sound()
    if tensor.dtype == torch.bfloat16:  # numpy() knows it not, but its bits
        return np.array(tensor.view(torch.int16).numpy(), order="C").view(jnp.bfloat16)
    return np.array(tensor.numpy(), order="C")


def _check_zip(path: Path) -> None:
    """A mapped file is not compared with its checksums: this does so."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} in it is damaged")
