# Copyright 2026 The moss-audio authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Safetensors files read and written piece by piece, so that memory does not grow with a checkpoint.

The library that defines the format opens files as a whole or maps them into memory; the format itself is a JSON header
followed by the bytes of the tensors, which is all that streaming needs. Files are still checked by the library.
"""

import errno
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch
from safetensors import SafetensorError, safe_open

from . import ConversionError
from .manifest import LEFTOVER, Shape, some


SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}  # config.json's names and the format's
NAMES = {code: name for name, code in TYPES.items()}
BLOCK_BYTES = 1 << 22
DISK_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

Blocks = Callable[[], Iterator[Any]]  # gives the bytes of a tensor, piece by piece
Report = Callable[[int], Any]  # is told of bytes written


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file."""

    name: str
    dtype: str  # as the format writes it: "BF16"
    shape: Shape
    path: Path
    start: int  # of its bytes in the file
    size: int  # in bytes

    def blocks(self) -> Iterator[bytearray]:
        """Its bytes as they are."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            for size in _pieces(self.size, BLOCK_BYTES):
                block = bytearray(size)
                if file.readinto(block) != size:
                    raise ConversionError(f"{self.path} ended inside {self.name}: it changed while it was read.")
                yield block

    def values(self) -> Iterator[torch.Tensor]:
        """Its values in pieces, one-dimensional."""
        return (torch.frombuffer(block, dtype=_torch_dtype(self.dtype)) for block in self.blocks())


@dataclass(frozen=True)
class Weights:
    """The weights of a folder: its files, and all tensors by name."""

    files: list[Path]
    tensors: dict[str, StoredTensor]
    metadata: dict[Path, dict[str, str]] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def dtypes(self) -> dict[str, int]:
        """How many tensors there are of each dtype, the leftover buffer aside."""
        counts: dict[str, int] = {}
        for name, tensor in self.tensors.items():
            if name != LEFTOVER:
                counts[tensor.dtype] = counts.get(tensor.dtype, 0) + 1
        return counts


@dataclass(frozen=True)
class Entry:
    """A tensor to be written."""

    name: str
    dtype: str
    shape: Shape
    blocks: Blocks

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * _torch_dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Shard:
    """A file to be made, and how."""

    name: str
    tensors: dict[str, int]  # bytes of each
    space: int  # that it takes on the disk beyond what is there, in bytes
    write: Callable[[Path, Report], None]


# ------------------------------------------------------------------------------------------------------------- reading


def read_weights(folder: Path) -> Weights:
    """
    The tensors in a folder's safetensors files, by their headers: those of its index, or else all in it.

    Raises:
        ConversionError: where there are none, only pickled ones, a file is missing or broken, a tensor is there twice
            or not where the index says.
    """
    files, index = _weight_files(folder)
    tensors: dict[str, StoredTensor] = {}
    metadata = {}
    for path in files:
        found, metadata[path] = read_header(path)
        for name, tensor in found.items():
            if name in tensors:
                raise ConversionError(
                    f"tensor {name} is both in {tensors[name].path.name} and in {path.name} of {folder}; remove the file "
                    f"that does not belong there, or name the right ones in an {INDEX_FILE}."
                )
            tensors[name] = tensor
    astray = [name for name, file in index.items() if name not in tensors or tensors[name].path.name != file]
    if astray:
        raise ConversionError(f"{folder / INDEX_FILE} names tensors that are not in their files: {some(astray)}.")
    return Weights(files, tensors, metadata)


def _weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The files that hold a folder's weights, and the index from tensors to their names, empty without one."""
    index_path = folder / INDEX_FILE
    if index_path.is_file():
        index = read_json(index_path).get("weight_map")
        if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
            raise ConversionError(f"{index_path} has no `weight_map` from tensors to files; download it again.")
        names = sorted(set(index.values()))
        if outside := [name for name in names if Path(name).name != name or "\\" in name]:
            raise ConversionError(f"{index_path} names files outside of the folder: {some(outside)}.")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise ConversionError(
                f"{folder} lacks {len(missing)} of the {len(names)} files that {INDEX_FILE} names: {some(missing)}; "
                "download them again."
            )
        return [folder / name for name in names], index
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE], {}
    files = sorted(folder.glob("*.safetensors"))
    _check_numbering(folder, files)
    if not files:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise ConversionError(
                f"{folder} holds its weights as pickles ({some(pickles)}), which can run code when they are read; "
                "save them as safetensors first, e.g. with `safetensors.torch.save_file`."
            )
        raise ConversionError(f"{folder} holds no weights: no {SINGLE_FILE}, no {INDEX_FILE}, no *.safetensors.")
    return files, {}


def _check_numbering(folder: Path, files: list[Path]):
    """Without an index, names such as model-00002-of-00003.safetensors still tell which file is missing."""
    numbered = [(path, re.fullmatch(r"(.*)-(\d+)-of-(\d+)\.safetensors", path.name)) for path in files]
    for stem, total in {(match[1], match[3]) for _, match in numbered if match}:
        width = len(total)
        names = [f"{stem}-{number:0{width}d}-of-{total}.safetensors" for number in range(1, int(total) + 1)]
        if missing := [name for name in names if folder / name not in files]:
            raise ConversionError(
                f"{folder} lacks {len(missing)} of {total} files: {some(missing)}; download them again."
            )


def read_header(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """
    The tensors of a safetensors file, and its metadata; nothing but the header is read.

    Raises:
        ConversionError: where it is no safetensors file, or not a whole one.
    """
    with open(path, "rb") as file:
        if file.read(24).startswith(b"version https://git-lfs"):
            raise ConversionError(
                f"{path} is a pointer of Git LFS, not the file itself: run `git lfs pull` in its folder."
            )
    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise ConversionError(f"{path} is no whole safetensors file ({error}); download it again.") from error
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", None) or {}
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        tensors[name] = StoredTensor(
            name, entry["dtype"], tuple(entry["shape"]), path, 8 + length + start, end - start
        )
    return tensors, metadata


def check_dtypes(weights: Weights, where: Path):
    """
    Refuses weights that are no floating-point numbers of 16 or 32 bits.

    Raises:
        ConversionError: naming the tensors.
    """
    other = [
        f"{tensor.name} is {tensor.dtype}"
        for tensor in weights.tensors.values()
        if tensor.dtype not in NAMES and tensor.name != LEFTOVER
    ]
    if other:
        raise ConversionError(
            f"{where} has {len(other)} tensors that are none of {', '.join(TYPES)}: {some(other)}. Quantized weights "
            "cannot be converted: start from the unquantized checkpoint."
        )


# ------------------------------------------------------------------------------------------------------------- writing


def kept_shards(
    weights: Weights, make: Callable[[Path, Path, Report], None], space: Callable[[Path], int]
) -> list[Shard]:
    """The files of a folder as they are, each made by `make` (source, path, report): copied, or linked."""
    alone = len(weights.files) == 1
    shards = []
    for file in weights.files:
        tensors = {name: tensor.size for name, tensor in weights.tensors.items() if tensor.path == file}

        def write(path: Path, report: Report, file: Path = file):
            make(file, path, report)

        shards.append(Shard(SINGLE_FILE if alone else file.name, tensors, space(file), write))
    return shards


def written_shards(entries: Iterable[Entry], max_shard_size: int) -> list[Shard]:
    """Tensors in files of at most `max_shard_size` bytes; a larger tensor has a file of its own."""
    groups: list[list[Entry]] = []
    room = -1
    for entry in entries:
        if not groups or entry.size > room:
            groups.append([])
            room = max_shard_size
        groups[-1].append(entry)
        room -= entry.size
    shards = []
    for number, group in enumerate(groups, start=1):
        name = SINGLE_FILE if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {entry.name: entry.size for entry in group}

        def write(path: Path, report: Report, group: list[Entry] = group):
            write_safetensors(path, group, report)

        shards.append(Shard(name, tensors, sum(tensors.values()), write))
    return shards


def write_safetensors(path: Path, entries: list[Entry], report: Report):
    """
    A safetensors file, written tensor by tensor.

    Wide types come first, as the library orders them: every tensor then starts at a multiple of its item size.
    """
    entries = sorted(entries, key=lambda entry: -_torch_dtype(entry.dtype).itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.size
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [start, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for entry in entries:
            for block in entry.blocks():
                report(file.write(block))
        _flush(file)


def copy_file(source: Path, path: Path, report: Report):
    """Copies a file piece by piece."""
    with open(source, "rb") as reader, open(path, "wb") as writer:
        while block := reader.read(BLOCK_BYTES):
            report(writer.write(block))
        _flush(writer)


def link_file(source: Path, path: Path, report: Report):
    """
    Makes `path` a second name of the same file.

    Raises:
        ConversionError: where the file system cannot.
    """
    source = source.resolve()  # the Hub's cache holds symbolic links
    try:
        os.link(source, path)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise ConversionError(f"{source} cannot be linked to {path} ({error.strerror}); pass --copy.") from error
    report(path.stat().st_size)


def write_shards(folder: Path, shards: list[Shard], report: Report):
    """Makes the files of a checkpoint in a folder, and their index; those that are there already are left."""
    for shard in shards:
        path = folder / shard.name
        if path.exists():  # files get their names when they are whole
            report(sum(shard.tensors.values()))
            continue
        part = folder / f"{shard.name}.part"
        part.unlink(missing_ok=True)
        shard.write(part, report)
        os.replace(part, path)
    if [shard.name for shard in shards] != [SINGLE_FILE]:
        index = {name: shard.name for shard in shards for name in shard.tensors}
        total = sum(size for shard in shards for size in shard.tensors.values())
        write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))})


def stored_entry(tensor: StoredTensor, dtype: Optional[str] = None, name: Optional[str] = None) -> Entry:
    """A tensor of a file, under another name and in another of the format's dtypes if given."""
    name = tensor.name if name is None else name
    if dtype is None or dtype == tensor.dtype:
        return Entry(name, tensor.dtype, tensor.shape, tensor.blocks)
    return Entry(name, dtype, tensor.shape, lambda: _cast(tensor, dtype))


def _cast(tensor: StoredTensor, dtype: str) -> Iterator[memoryview]:
    target = _torch_dtype(dtype)
    for values in tensor.values():
        cast = values.to(target)
        lost = cast.isinf() & values.isfinite()
        if lost.any():
            raise ConversionError(
                f"tensor {tensor.name} holds {float(values[lost][0]):g}, beyond {NAMES[dtype]}'s largest number "
                f"{torch.finfo(target).max:g}; bfloat16 and float32 can hold it."
            )
        yield _bytes(cast)


def initial_entry(name: str, shape: Shape, dtype: str, std: float, seed: int) -> Entry:
    """
    A new tensor as the model initialises it: biases 0, norms 1, all others normal.

    Its values depend on the seed and its name alone, not on the other tensors or on how they are cut into files.
    """

    def blocks() -> Iterator[memoryview]:
        kind = name.split(".")
        # Of a generator's seed on the CPU 32 bits count.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        for size in _pieces(math.prod(shape), BLOCK_BYTES // 4):
            if kind[-1] == "bias":
                values = torch.zeros(size)
            elif kind[-2].endswith("norm"):
                values = torch.ones(size)
            else:
                values = torch.empty(size).normal_(0, std, generator=generator)
            yield _bytes(values.to(_torch_dtype(dtype)))

    return Entry(name, dtype, shape, blocks)


def parse_size(text: str) -> int:
    """
    Bytes of a size such as "5GB", "500MB" or "2GiB".

    Raises:
        ConversionError: where it is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B\s*", text, re.IGNORECASE)
    size = 0
    if match:
        power = " KMGT".index(match[2].upper() or " ")
        size = int(float(match[1]) * (1024 if match[3] else 1000) ** power)
    if not size:
        raise ConversionError(f"`max_shard_size` {text!r} is no size; write it like 5GB, 500MB or 2GiB.")
    return size


def format_size(size: float) -> str:
    """A number of bytes as a reader likes it: "10.45 GB"."""
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.{0 if unit == 'bytes' else 1}f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def _torch_dtype(dtype: str) -> torch.dtype:
    return getattr(torch, NAMES[dtype])


def _bytes(values: torch.Tensor) -> memoryview:
    return memoryview(values.view(torch.uint8).numpy())


def _pieces(total: int, size: int) -> Iterator[int]:
    while total > 0:
        yield min(size, total)
        total -= size


def _flush(file: Any):
    """To the disk: a file must not get its final name while its contents can still be lost."""
    file.flush()
    os.fsync(file.fileno())


# ---------------------------------------------------------------------------------------------------------- small files


def read_json(path: Path) -> dict[str, Any]:
    """
    The object in a JSON file.

    Raises:
        ConversionError: where there is no such file, or no object in it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConversionError(f"{path.parent} has no {path.name}.") from error
    except (ValueError, OSError) as error:
        raise ConversionError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds a JSON {type(content).__name__}; expected an object.")
    return content


def write_json(path: Path, content: dict[str, Any]):
    """Writes a JSON file as Transformers formats them."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str):
    """Writes a text in UTF-8 with line feeds, on every system."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        _flush(file)
