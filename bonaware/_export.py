"""Writes a model as a Hugging Face folder: safetensors, config.json and what lies beside them.

A folder is written under another name and renamed when it is complete, so that nobody ever
sees half of one. Tensors are asked for one by one: memory holds one of them at a time.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "INDEX", "SAVING", "SINGLE", "Tensor", "fingerprint", "fits_bfloat16", "new_folder",
    "write_json", "write_safetensors", "write_weights",
]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_SHARD = 5 * 10**9  # bytes of one file, as transformers writes them
SIZES = {"F32": 4, "BF16": 2}
SAVING = ".saving-"  # in the name of a folder that is being written, and eight more characters
SAMPLED = 1024  # bytes of the start, middle and end of a tensor in the fingerprint


@dataclass(frozen=True)
class Tensor:
    """One tensor to be written.

    Parameters
    ----------
    name : str
    stored : {"F32", "BF16"}
        bfloat16 is rounded to the nearest, ties to even.
    shape : tuple of int
    read : callable
        Gives its values as float32, with this number of elements.
    """

    name: str
    stored: str
    shape: tuple[int, ...]
    read: Callable[[], NDArray[np.float32]]

    @property
    def size(self) -> int:
        """Bytes."""
        return SIZES[self.stored] * math.prod(self.shape)

    def data(self) -> NDArray[np.uint8]:
        """The bytes, uint8 [size]."""
        values = np.ascontiguousarray(self.read(), np.float32)
        if values.size != math.prod(self.shape):
            raise ValueError(f"tensor {self.name} must have shape {list(self.shape)}, found "
                             f"{list(values.shape)}")
        bits = values if self.stored == "F32" else _to_bfloat16(values)
        return bits.reshape(-1).view(np.uint8)


def _to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = values.view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)  # rounding may carry a NaN away


def fits_bfloat16(values: NDArray[np.float32]) -> bool:
    """Whether bfloat16 holds these numbers exactly."""
    return not (np.ascontiguousarray(values, np.float32).view(np.uint32) & 0xFFFF).any()


def write_safetensors(path: Path, tensors: Sequence[Tensor],
                      metadata: Mapping[str, str] | None = None) -> None:
    """One safetensors file; wider types first, so that every tensor is aligned."""
    tensors = sorted(tensors, key=lambda tensor: (-SIZES[tensor.stored], tensor.name))
    header: dict[str, Any] = {
        "__metadata__": {"format": "pt"} | dict(metadata or {})}  # transformers asks for format
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.size
        header[tensor.name] = {"dtype": tensor.stored, "shape": list(tensor.shape),
                               "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            file.write(tensor.data().data)


def write_weights(folder: Path, tensors: Sequence[Tensor]) -> None:
    """model.safetensors, or several files with their index where one would be too large."""
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.size for t in shards[-1]) + tensor.size > MAX_SHARD:
            shards.append([])
        shards[-1].append(tensor)
    if len(shards) == 1:
        write_safetensors(folder / SINGLE, tensors)
        return
    table: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / name, shard)
        table |= {tensor.name: name for tensor in shard}
    size = sum(tensor.size for tensor in tensors)
    write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": table})


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to write into, which becomes `path` at the end; nothing is left on an error.

    Raises
    ------
    FileExistsError
        path is there and is not an empty folder, or is the current one.
    """
    target = Path(path).resolve()
    if target == Path.cwd():
        raise FileExistsError("need another folder than the current one to save in, as a whole "
                              f"folder takes its place, found {target}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"need a folder that is new or empty to save in, found {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=target.name + SAVING) as temporary:
        folder = Path(temporary, target.name)
        folder.mkdir()
        yield folder
        folder.replace(target)


def copy(files: Iterable[Path], folder: Path) -> None:
    """Files, and folders whole, with their names."""
    for file in files:
        if file.is_dir():
            shutil.copytree(file, folder / file.name)
        else:
            shutil.copyfile(file, folder / file.name)


def fingerprint(config: Mapping[str, Any],
                tensors: Iterable[tuple[str, str, tuple[int, ...], NDArray[np.uint8]]]) -> str:
    """sha256 of a configuration and of (name, stored type, shape, bytes) of tensors by name.

    Of the bytes only the start, the middle and the end of each tensor count.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, stored, shape, data in tensors:
        digest.update(json.dumps([name, [stored, list(shape)], data.size]).encode())
        middle = max(0, data.size // 2 - SAMPLED // 2)
        for start in (0, middle, max(0, data.size - SAMPLED)):
            digest.update(data[start:start + SAMPLED].tobytes())
    return digest.hexdigest()
