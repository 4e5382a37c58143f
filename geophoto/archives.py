"""Files of tensors: sealed when they are written, trusted in nothing when they are read.

In: plain values, arrays, tensors. Out: zip files of torch.save with a seal at their end; the same
values again, or a ValueError that says why not, before anything large is made.
"""

from __future__ import annotations

import hashlib
import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

import density

SEAL = b"geophoto sha256 "  # and the digest of every byte before it: the comment of the zip
SEAL_LENGTH = len(SEAL) + 64
TAIL = 22  # bytes of the zip's last record; its last two tell how long the comment is
LARGEST_PICKLE = 1 << 28  # bytes; 100,000 photos take 10 MB
MOST_VALUES = 5_000_000
DEEPEST = 30
ELEMENT_BYTES = {
    "FloatStorage": 4, "DoubleStorage": 8, "HalfStorage": 2, "BFloat16Storage": 2,
    "LongStorage": 8, "IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1,
    "BoolStorage": 1,
}  # fmt: skip

# ---------------------------------------------------------------- write


class Sealing:
    """A file that digests what is written to it; `seal` puts the digest at the end.

    The zip's own checksums do not cover its headers and paddings; this one covers every byte, and
    as the comment of the zip it bothers no reader.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.tail, self.digest = file, b"", hashlib.sha256()

    def write(self, data) -> int:
        held = self.tail + bytes(data)
        self.pass_on(held[:-TAIL])
        self.tail = held[-TAIL:]
        return len(data)

    def pass_on(self, data: bytes) -> None:
        self.digest.update(data)
        self.file.write(data)

    def flush(self) -> None:
        self.file.flush()

    def seal(self) -> None:
        self.pass_on(self.tail[:-2] + SEAL_LENGTH.to_bytes(2, "little"))
        self.file.write(SEAL + self.digest.hexdigest().encode())


def save(path: Path, content: dict) -> None:
    """torch.save, whole or not at all; arrays become tensors, as weights_only reads no others."""

    def plain(value):
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value.copy())  # a view would bring all that it is a view of
        if isinstance(value, str):  # equal texts as one object, or bytes differ after a resume
            return sys.intern(value)
        if isinstance(value, dict):
            return {plain(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(plain(v) for v in value)
        return value.item() if isinstance(value, np.generic) else value

    with density.write_atomically(path) as file:
        sealing = Sealing(file)
        torch.save(plain(content), sealing)  # type: ignore[arg-type]  # it only writes
        sealing.seal()


def numpy_again(value):
    """The inverse of save's conversion for everything below `value` but network weights."""
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if isinstance(value, dict):
        return {k: numpy_again(v) for k, v in value.items()}
    return value


# ---------------------------------------------------------------- read


def load(path: Path) -> Any:
    """What `save` wrote; ValueError where a byte is not as it was written, or where the file, by
    whomever it was sealed, would run code, read beside its records or unfold to more than it holds.
    """
    with open(path, "rb") as file:
        check_seal(file)
        file.seek(0)
        try:
            scan(file)
            content = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # zip, pickle and torch raise many kinds, for any bad byte
            raise ValueError(f"{type(error).__name__}: {error}".splitlines()[0][:200]) from error
    count_values(content)
    return content


def check_seal(file: IO[bytes]) -> None:
    """ValueError unless the file ends with the sha256 of all bytes before it."""
    length = file.seek(0, 2)
    if length < SEAL_LENGTH + TAIL:
        raise ValueError("it is cut off")
    file.seek(length - SEAL_LENGTH)
    seal = file.read()
    if not seal.startswith(SEAL):
        raise ValueError("it has no seal: cut off, changed, or written by another program")
    file.seek(0)
    digest, left = hashlib.sha256(), length - SEAL_LENGTH
    while left:
        block = file.read(min(left, 1 << 20))
        digest.update(block)
        left -= len(block)
    if seal[len(SEAL) :] != digest.hexdigest().encode():
        raise ValueError("it is damaged: its sha256 is not that of its seal")


def scan(file: IO[bytes]) -> None:
    """Look through zip and pickle without torch: records stored whole with their CRC, and a
    pickle that names nothing but tensors inside their records."""
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        sizes = {record.filename.partition("/")[2]: record.file_size for record in records}
        if len(sizes) != len(records) or len({r.filename.split("/")[0] for r in records}) != 1:
            raise ValueError("records of the same name, or of several folders")
        if any(r.compress_type != zipfile.ZIP_STORED or r.flag_bits & 1 for r in records):
            raise ValueError("a record is compressed or encrypted")
        if broken := archive.testzip():
            raise ValueError(f"the CRC of {broken} is wrong")
        if not 0 < sizes.get("data.pkl", 0) <= LARGEST_PICKLE:
            raise ValueError("no data.pkl, or one too large")
        name = next(r.filename for r in records if r.filename.endswith("/data.pkl"))
        with archive.open(name) as pickled:
            Scanner(pickled, sizes).load()


class Scanner(pickle._Unpickler):  # in Python: C's makes room for any index it is told
    """Unpickles with stand-ins: no name but those below is looked up, and no tensor is made."""

    def __init__(self, file: IO[bytes], sizes: dict[str, int]) -> None:
        super().__init__(file)
        self.sizes = sizes

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return check_tensor
        if module == "torch" and name in ELEMENT_BYTES:
            return name
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> int:
        """The number of elements of a storage, which is that of its record."""
        kind, storage, key, _, count = pid
        if kind != "storage" or self.sizes.get(f"data/{key}") != count * ELEMENT_BYTES[storage]:
            raise pickle.UnpicklingError(f"storage {key} is not as long as its record")
        return count


def check_tensor(count: int, offset: int, shape: tuple, stride: tuple, *_: Any) -> None:
    """ValueError unless a tensor lies in its storage, each element in a place of its own."""
    if 0 in shape:
        return
    wanted = 1
    for step, size in sorted((step, size) for size, step in zip(shape, stride, strict=True)):
        if size < 0 or (size > 1 and step < wanted):
            raise pickle.UnpicklingError("a tensor's elements overlap")
        wanted = wanted if size <= 1 else step * (size - 1) + wanted
    if offset < 0 or offset + wanted > count:
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")


def count_values(content: Any) -> None:
    """ValueError for values nested too deep or, one holding another many times, too many."""
    left = [(content, 0)]
    for _ in range(MOST_VALUES):
        if not left:
            return
        if len(left) > MOST_VALUES:
            break
        value, depth = left.pop()
        if isinstance(value, dict | list | tuple):
            if depth > DEEPEST:
                raise ValueError("values are nested too deep")
            parts = value.values() if isinstance(value, dict) else value
            left.extend((part, depth + 1) for part in parts)
    raise ValueError("too many values")
