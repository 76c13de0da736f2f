"""TensorFlow V2 checkpoints without TensorFlow: PREFIX.index and its data shards.

The index is a sorted table of LevelDB's kind. Its last 48 bytes lead to a block of handles, each
handle to a block of keys and values. Key "" holds a BundleHeaderProto, every other key is a
variable's name with a BundleEntryProto: dtype, shape, and where in which shard its bytes lie.
Whatever does not add up is a ValueError; the caller knows the name of the file.
"""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from deeplab_jax.errors import WeightsError, first_few

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")  # the last bytes of V2 indices and V1 files
_FOOTER = 48
# A training checkpoint of DeepLab is 440 names in 20 kB. The bounds keep a table that was made
# to unfold (each name shares its beginning with the one before it) from filling the memory.
_MAX_INDEX = 2**24
_MAX_NAME = 1024
_MAX_NAMES = 100_000

_DTYPES = {  # numbers of tensorflow/core/framework/types.proto
    1: np.dtype(np.float32),
    2: np.dtype(np.float64),
    3: np.dtype(np.int32),
    4: np.dtype(np.uint8),
    5: np.dtype(np.int16),
    6: np.dtype(np.int8),
    9: np.dtype(np.int64),
    10: np.dtype(np.bool),
    14: np.dtype(jnp.bfloat16),
    17: np.dtype(np.uint16),
    19: np.dtype(np.float16),
    22: np.dtype(np.uint32),
    23: np.dtype(np.uint64),
}
_STRING = 7
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


def find(path: Path) -> Path | None:
    """The PREFIX meant by PREFIX, PREFIX.index, a data shard or a folder; None: no checkpoint.

    Raises:
      WeightsError: a folder whose `checkpoint` file is missing or names nothing.
    """
    if path.is_dir():
        return _latest(path)
    if match := re.fullmatch(r"(.+)\.(index|data-\d{5}-of-\d{5})", path.name, re.DOTALL):
        return path.with_name(match[1])
    return path if not path.is_file() and _beside(path, ".index").is_file() else None


def entries(prefix: Path) -> Iterator[tuple[str, tuple[int, ...], str, Callable]]:
    """Yields (name, shape, dtype's name, function reading it); string tensors are left out.

    The places and sizes are checked against the true length of the shards.
    """
    index = _beside(prefix, ".index")
    if not index.is_file():
        raise WeightsError(
            f"{index}: no such file. A TensorFlow checkpoint is PREFIX.index with "
            "PREFIX.data-00000-of-00001 beside it"
        )
    if index.stat().st_size > _MAX_INDEX:
        raise ValueError(f"an index of more than {_MAX_INDEX} bytes")
    lengths, shards = {}, None
    for key, value in _table(index.read_bytes()):
        fields = _message(value)
        if shards is None:
            shards = _shard_count(key, fields)
            continue
        if key.startswith(b"\0") or (7, _BYTES) in fields:
            raise WeightsError(
                f"{index}: it holds partitioned variables (slices), which are not read here; "
                "save the variables whole"
            )
        number, shard, offset, size = (fields.get((i, _VARINT), [0])[-1] for i in (1, 3, 4, 5))
        if number == _STRING:
            continue
        name = key.decode()
        if number not in _DTYPES:
            raise ValueError(f"{name}: TensorFlow's dtype {number} is not read")
        dtype, shape = _DTYPES[number], _shape(fields)
        if shard >= shards:
            raise ValueError(f"{name}: lies in shard {shard} of {shards}")
        data = _beside(prefix, f".data-{shard:05d}-of-{shards:05d}")
        if shard not in lengths:
            if not data.is_file():
                raise WeightsError(f"{data}: no such file, but {index.name} needs it beside it")
            lengths[shard] = data.stat().st_size
        if math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"{name}: {size} bytes for shape {shape} of {dtype}")
        if offset + size > lengths[shard]:
            raise WeightsError(
                f"{data}: {name} needs bytes {offset} to {offset + size}, but the file ends at "
                f"{lengths[shard]}; is it cut short?"
            )
        crc = fields.get((6, _FIXED32), [None])[-1]
        yield name, shape, dtype.name, _reader(data, offset, size, shape, dtype, crc)
    if shards is None:
        raise ValueError("its index is empty")


def _reader(data: Path, offset: int, size: int, shape, dtype, crc: int | None) -> Callable:
    def read() -> np.ndarray:
        with data.open("rb") as file:
            raw = np.fromfile(file, np.uint8, size, offset=offset)
        if raw.size != size or (crc is not None and _masked_crc(raw) != crc):
            raise WeightsError(f"{data}: damaged between bytes {offset} and {offset + size}")
        return raw.view(dtype).reshape(shape)

    return read


def _latest(folder: Path) -> Path:
    state = folder / "checkpoint"
    if not state.is_file():
        found = sorted(folder.glob("*.index"))
        raise WeightsError(
            f"{folder}: a folder without TensorFlow's `checkpoint` file; give the checkpoint's "
            "PREFIX.index" + (", one of\n" + first_few(found) if found else "")
        )
    text = state.read_text(errors="replace")
    match = re.search(r'^\s*model_checkpoint_path:\s*"([^"]+)"', text, re.MULTILINE)
    if match is None:
        raise WeightsError(f"{state}: has no line model_checkpoint_path")
    prefix = folder / match[1]
    # An absolute path is the training machine's: here the file lies in this folder.
    return prefix if _beside(prefix, ".index").is_file() else folder / prefix.name


def _beside(prefix: Path, ending: str) -> Path:
    return prefix.with_name(prefix.name + ending)


def _table(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the table's keys, strictly increasing, and values."""
    if len(table) < _FOOTER or not table.endswith(MAGIC):
        raise ValueError("it does not end as an index does; is it cut short?")
    footer = table[-_FOOTER:-8]
    _, at = _varint(footer, 0)  # the handle (offset, size) of a block nobody needs, ...
    _, at = _varint(footer, at)
    offset, at = _varint(footer, at)  # ... and of the block of handles
    size, _ = _varint(footer, at)
    before, count = None, 0
    for _, handle in _block(table, offset, size):
        offset, at = _varint(handle, 0)
        size, _ = _varint(handle, at)
        for key, value in _block(table, offset, size):
            count += 1
            if count > _MAX_NAMES or (before is not None and key <= before):
                raise ValueError("its names are out of order or too many")
            before = key
            yield key, value


def _block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys and values of the block at [offset, offset + size)."""
    end = offset + size
    if size < 4 or end + 5 > len(table) - _FOOTER:
        raise ValueError("a block lies outside of the index")
    if _masked_crc(table[offset : end + 1]) != int.from_bytes(table[end + 1 : end + 5], "little"):
        raise ValueError(f"the index is damaged between bytes {offset} and {end}")
    if table[end] != 0:
        how = "with Snappy" if table[end] == 1 else f"in an unknown way ({table[end]})"
        raise ValueError(f"the index is compressed {how}, which is not read here")
    restarts = int.from_bytes(table[end - 4 : end], "little")
    data = table[offset : max(offset, end - 4 - 4 * restarts)]  # restarts are for searching
    at, key = 0, b""
    while at < len(data):
        shared, at = _varint(data, at)
        rest, at = _varint(data, at)
        length, at = _varint(data, at)
        if shared > len(key) or at + rest + length > len(data) or shared + rest > _MAX_NAME:
            raise ValueError("a name or value of the index ends outside of its block")
        key = key[:shared] + data[at : at + rest]
        at += rest + length
        yield key, data[at - length : at]


def _shard_count(key: bytes, header: dict) -> int:
    if key != b"":
        raise ValueError("the index does not begin with its header")
    if header.get((2, _VARINT), [0])[-1] != 0:
        raise ValueError("written on a big-endian machine, which is not read here")
    return header.get((1, _VARINT), [0])[-1]


def _shape(fields: dict) -> tuple[int, ...]:
    """The entry's TensorShapeProto; a negative size reads as one too large for any shard."""
    shape = _message(fields.get((2, _BYTES), [b""])[-1])
    if shape.get((3, _VARINT), [0])[-1]:
        raise ValueError("a variable of unknown rank")
    dims = shape.get((2, _BYTES), [])
    return tuple(_message(dim).get((1, _VARINT), [0])[-1] for dim in dims)


def _message(data: bytes) -> dict[tuple[int, int], list]:
    """A protocol buffer as {(field, wire type): its values, integers or bytes}."""
    fields, at = {}, 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
        elif wire in (_FIXED64, _BYTES, _FIXED32):
            length = {_FIXED64: 8, _FIXED32: 4}.get(wire)
            if length is None:
                length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("a value of the index ends too early")
            value, at = data[at : at + length], at + length
            if wire != _BYTES:
                value = int.from_bytes(value, "little")
        else:
            raise ValueError(f"a value of the index has wire type {wire}")
        fields.setdefault((tag >> 3, wire), []).append(value)
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, seven bits a byte, lowest first, and the place after it."""
    value = 0
    for i, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << (7 * i)
        if byte < 128:
            return value, at + i + 1
    raise ValueError("a number of the index does not end")


# CRC-32C, in numpy: byte by byte in Python would take a minute for Xception-65's 160 MB. The
# register is linear over the bits, so rows of bytes are run side by side and then combined.


def _steps(count: int, register: np.ndarray) -> np.ndarray:
    for _ in range(count):
        register = np.where(register & 1, np.uint32(0x82F63B78), np.uint32(0)) ^ (register >> 1)
    return register


_BITS = np.arange(32, dtype=np.uint32)
_BYTE_TABLE = _steps(8, np.arange(256, dtype=np.uint32))
_ZERO_BYTE = _steps(8, np.uint32(1) << _BITS)  # column i: what a zero byte makes of bit i


def _times(matrix: np.ndarray, registers: np.ndarray) -> np.ndarray:
    bits = (registers[:, None] >> _BITS) & 1
    return np.bitwise_xor.reduce(bits * matrix, axis=1)


def crc32c(data: bytes | np.ndarray) -> int:
    """CRC-32C of bytes or of a uint8 array."""
    data = np.frombuffer(data, np.uint8)
    # A register of 0 stays 0 over zeros, so zeros fill up in front; these four bytes take it
    # from there to all ones, where CRC-32C starts.
    length = 2 ** (len(data).bit_length() // 2)
    rows = -(-(len(data) + 4) // length)
    padded = np.zeros(rows * length, np.uint8)
    start = len(padded) - len(data)
    padded[start - 4 : start] = 0x54, 0x64, 0x1F, 0x64
    padded[start:] = data
    register = np.zeros(rows, np.uint32)
    for column in padded.reshape(rows, length).T:
        register = _BYTE_TABLE[(register ^ column) & 255] ^ (register >> 8)
    shift = _ZERO_BYTE  # over 1 byte; squared: over 2, 4, ..., length
    for _ in range(length.bit_length() - 1):
        shift = _times(shift, shift)
    while len(register) > 1:
        if len(register) % 2:
            register = np.concatenate([np.zeros(1, np.uint32), register])
        register = _times(shift, register[::2]) ^ register[1::2]
        shift = _times(shift, shift)
    return int(register[0]) ^ 0xFFFFFFFF


def _masked_crc(data: bytes | np.ndarray) -> int:
    """As it is stored: turned and shifted, so that a CRC of data holding CRCs stays sound."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
