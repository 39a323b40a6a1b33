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
"""Training data: JSON Lines, a JSON array or a `datasets` dataset, in two layouts, as one kind of sample.

A sample is a dict with `messages` in Transformers' chat layout, checked and with paths that hold from anywhere, `origin`
(file and line, different for each), and whatever other keys the record had.
"""

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np
from torch.utils.data import Dataset


ROLES = ("system", "user", "assistant")
SOURCES = ("path", "url", "base64", "audio")  # the keys of an audio part that may hold its recording
REMOTE = ("http://", "https://", "data:")


class DataError(ValueError):
    """What is wrong with training data: file, line, key, value, and what was expected."""


class Record(NamedTuple):
    """An entry of a data file: where it stands, and its value or why it has none."""

    origin: str
    value: Any
    error: Optional[DataError] = None


# --------------------------------------------------------------------------------------------------------------- files


def read_records(path: Union[str, os.PathLike]) -> Iterator[Record]:
    """
    The entries of a data file, one by one: lines of JSON, or the members of one JSON array.

    Raises:
        DataError: where there is no such file, it is not UTF-8, or holds nothing.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: there is no such data file.")
    found = False
    try:
        with open(path, encoding="utf-8-sig") as file:
            records = _members(file, path) if _is_array(file) else _lines(file, path)
            for record in records:
                found = True
                yield record
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); JSON is written in UTF-8.") from error
    if not found:
        raise DataError(f"{path} holds no sample; expected a JSON object a line, or a JSON array of objects.")


def _is_array(file: io.TextIOBase) -> bool:
    for line in file:
        if line.strip():
            file.seek(0)
            return line.lstrip().startswith("[")
    file.seek(0)
    return False


def _lines(file: io.TextIOBase, path: Path) -> Iterator[Record]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        origin = f"{path}, line {number}"
        try:
            yield Record(origin, json.loads(line))
        except json.JSONDecodeError as error:
            message = f"{origin}: this is not JSON ({error.msg} at character {error.pos + 1}): {line.strip()[:60]!r}."
            yield Record(origin, None, DataError(message))


def _members(file: io.TextIOBase, path: Path) -> Iterator[Record]:
    """The members of an array, each with the line that it starts in."""
    text, decoder = file.read(), json.JSONDecoder()
    position, line, counted = text.index("[") + 1, 1, 0
    while True:
        position = _skip(text, position, ",")
        if text[position : position + 1] == "]":
            return
        line, counted = line + text.count("\n", counted, position), position
        origin = f"{path}, line {line}"
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            message = f"{origin}: the array breaks off or is not JSON from line {error.lineno} on ({error.msg})."
            yield Record(origin, None, DataError(message))
            return
        yield Record(origin, value)


def _skip(text: str, position: int, separator: str) -> int:
    while position < len(text) and (text[position].isspace() or text[position] == separator):
        position += 1
    return position


# ------------------------------------------------------------------------------------------------------------- samples


def normalise(
    record: Mapping[str, Any],
    origin: Optional[str] = None,
    audio_root: Optional[Union[str, os.PathLike]] = None,
    check_files: bool = False,
) -> dict[str, Any]:
    """
    A record of either layout as a sample.

    Args:
        record: `{"messages": [{"role", "content"}]}`, where `content` is a string or a list of `{"type": "text", "text"}`
            and `{"type": "audio", "path"}` (or `url`, `base64`, `audio`); or `{"conversation": [{"role", "message_type",
            "content"}]}`, where entries of one role in a row make one turn. An audio part without a recording takes the
            next one of the record's `audio`, a recording or a list of them, as a column of a dataset gives it.
        origin: how messages call the record; by default its own `origin`, which a sample has.
        audio_root: the folder that relative paths start from; by default they are left as they are.
        check_files: whether a path must lead to a file now.

    Returns:
        The record with `messages` in place of either layout, and `origin`. A turn that is text only has a string as its
        content. White space around an answer is taken off: it is no part of what the model should say.

    Raises:
        DataError: for what cannot be trained on, by key and value.
    """
    if origin is None:
        origin = (record.get("origin") if isinstance(record, Mapping) else None) or "sample"
    try:
        if not isinstance(record, Mapping):
            raise DataError(f"is {_show(record)}; expected an object with `messages` or `conversation`.")
        present = [key for key in ("messages", "conversation") if record.get(key) is not None]
        if len(present) != 1:
            raise DataError(
                f"has keys {sorted(record)}; expected exactly one of `messages` (Transformers' chat layout) and "
                "`conversation` (the published layout)."
            )
        sample = {key: value for key, value in record.items() if key not in ("messages", "conversation", "audio")}
        messages = record[present[0]]
        if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
            raise DataError(
                f"`{present[0]}` is {_show(messages)}; expected a list with at least a question and an answer."
            )
        places = [f"messages[{index}]" for index in range(len(messages))]
        if present == ["conversation"]:
            messages, places = _from_published(messages)
        recordings = _Recordings(record.get("audio"), audio_root, check_files)
        sample["messages"] = [_message(message, where, recordings) for message, where in zip(messages, places)]
        recordings.check_all_used()
        _check_turns(sample["messages"])
    except DataError as error:
        raise DataError(f"{origin}: {error}") from error
    return {**sample, "origin": origin}


def _show(value: Any) -> str:
    """A value in a message, not too long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _from_published(entries: Sequence[Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """The published layout as messages, and where each starts: entries of one role in a row are one turn."""
    messages: list[dict[str, Any]] = []
    places = []
    for index, entry in enumerate(entries):
        where = f"conversation[{index}]"
        if not isinstance(entry, Mapping):
            raise DataError(
                f"`{where}` is {_show(entry)}; expected an object with `role`, `message_type` and `content`."
            )
        kind, content = entry.get("message_type"), entry.get("content")
        if kind not in ("text", "audio"):
            raise DataError(f'`{where}.message_type` is {_show(kind)}; expected "text" or "audio".')
        if not isinstance(content, str):
            expected = "the text" if kind == "text" else "the path of a recording"
            raise DataError(f"`{where}.content` is {_show(content)}; expected {expected} as a string.")
        part = {"type": "text", "text": content} if kind == "text" else {"type": "audio", "path": content}
        role = entry.get("role")
        if messages and messages[-1]["role"] == role and role != "assistant":
            messages[-1]["content"].append(part)
        else:
            messages.append({"role": role, "content": [part]})
            places.append(where)
    return messages, places


class _Recordings:
    """Where a record's recordings come from: its audio parts, or the record's `audio` in order."""

    def __init__(self, column: Any, root: Optional[Union[str, os.PathLike]], check_files: bool):
        several = isinstance(column, (list, tuple)) and not (column and isinstance(column[0], (int, float)))
        self.column = [] if column is None else list(column) if several else [column]
        self.used, self.root, self.check_files = 0, root, check_files

    def part(self, part: Mapping[str, Any], where: str) -> dict[str, Any]:
        """An audio part with one recording."""
        found = [key for key in SOURCES if part.get(key) is not None]
        if not found and self.used < len(self.column):
            key, source = "audio", self.column[self.used]
            where, self.used = f"audio[{self.used}]", self.used + 1
        elif len(found) == 1:
            key, source = found[0], part[found[0]]
            where = f"{where}.{key}"
        else:
            raise DataError(
                f"`{where}` is an audio part with keys {sorted(part)}; it needs exactly one of `path`, `url`, `base64` and "
                "`audio`, or a recording in the record's own `audio`."
            )
        if (
            isinstance(source, Mapping)
            and source.get("path")
            and not {"bytes", "array"} & {k for k, v in source.items() if v is not None}
        ):
            source = source["path"]  # a row of `datasets` that was not decoded
        if isinstance(source, (str, os.PathLike)) and key in ("path", "audio"):
            key, source = "path", self.resolve(source, where)
        return {"type": "audio", key: source}

    def resolve(self, path: Union[str, os.PathLike], where: str) -> str:
        given, path = path, os.path.expanduser(os.fspath(path))
        if not path:
            raise DataError(f"`{where}` is empty; expected the path of a recording.")
        if path.startswith(REMOTE):
            return path
        if self.root is not None:
            path = os.path.abspath(os.path.join(self.root, path))
        if self.check_files and not os.path.isfile(path):
            relative = "" if self.root is None or os.path.isabs(given) else f" ({path}: paths start at the data file)"
            raise DataError(f"`{where}` is {os.fspath(given)!r}, and there is no such file{relative}.")
        return path

    def check_all_used(self):
        if self.used < len(self.column):
            raise DataError(
                f"`audio` has {len(self.column)} recordings, and the messages have {self.used} audio parts without one; "
                'write {"type": "audio"} where each belongs.'
            )


def _message(message: Any, where: str, recordings: _Recordings) -> dict[str, Any]:
    """A message with its content as a string, or as a list where it holds sound."""
    if not isinstance(message, Mapping):
        raise DataError(f"`{where}` is {_show(message)}; expected an object with `role` and `content`.")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise DataError(f'`{where}.role` is {_show(role)}; expected "system", "user" or "assistant".')
    if isinstance(content, str):
        parts = [{"type": "text", "text": content}]
    elif isinstance(content, Sequence) and not isinstance(content, (bytes, bytearray)):
        parts = [_part(part, f"{where}.content[{i}]", recordings) for i, part in enumerate(content)]
    else:
        raise DataError(
            f"`{where}.content` is {_show(content)}; expected a string, or a list of text and audio parts."
        )
    rest = {key: value for key, value in message.items() if key not in ("role", "content") and value is not None}
    sounds = any(part["type"] == "audio" for part in parts)
    if role == "assistant":
        if sounds:
            raise DataError(f"`{where}` is the assistant's and holds audio; the model answers in text.")
        answer = "".join(part["text"] for part in parts).strip()
        if not answer:
            raise DataError(f"`{where}` is an empty answer; write what the model should say, or take the sample out.")
        return {"role": role, "content": answer, **rest}
    if not sounds and not "".join(part["text"] for part in parts).strip():
        raise DataError(
            f"`{where}` is an empty {'prompt' if role == 'system' else 'question'}; write one, or take it out."
        )
    return {"role": role, "content": parts if sounds else "".join(part["text"] for part in parts), **rest}


def _part(part: Any, where: str, recordings: _Recordings) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "audio":
        return recordings.part(part, where)
    if kind != "text":
        raise DataError(
            f'`{where}` is {_show(part)}; expected {{"type": "text", "text": …}} or {{"type": "audio", "path": …}}.'
        )
    if not isinstance(part.get("text"), str):
        raise DataError(f"`{where}.text` is {_show(part.get('text'))}; expected a string.")
    return {"type": "text", "text": part["text"]}


def _check_turns(messages: list[dict[str, Any]]):
    """A system prompt first if there is one, then questions and answers in turn, an answer last."""
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    shift = len(messages) - len(turns)
    for index, message in enumerate(turns):
        expected = ("user", "assistant")[index % 2]
        if message["role"] != expected:
            raise DataError(
                f'`messages[{index + shift}].role` is "{message["role"]}"; expected "{expected}": a system prompt may come '
                "first, then questions and answers take turns."
            )
    if not turns or turns[-1]["role"] != "assistant":
        raise DataError("the last message is no answer; end the sample with what the assistant should say.")


# ------------------------------------------------------------------------------------------------------------ datasets


class SampleDataset(Dataset):
    """
    Samples of a file, by index. They are kept packed as JSON: workers of a `DataLoader` share the memory, and a million
    samples take what their file takes.
    """

    def __init__(self, samples: Iterable[dict[str, Any]]):
        packed, ends, size = io.BytesIO(), [0], 0
        for sample in samples:
            size += packed.write(json.dumps(sample, ensure_ascii=False).encode())
            ends.append(size)
        self._packed, self._ends = np.frombuffer(packed.getvalue(), dtype=np.uint8), np.array(ends)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        return json.loads(self._packed[self._ends[index] : self._ends[index + 1]].tobytes())


class RowDataset(Dataset):
    """Samples of a `datasets` dataset, or of any sequence of records; each is checked when it is read.

    `name` tells the rows of one dataset from another's.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        audio_root: Optional[Union[str, os.PathLike]] = None,
        name: Optional[str] = None,
    ):
        self.rows, self.audio_root, self.prefix = rows, audio_root, "" if name is None else f"{name}, "

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        return normalise(
            self.rows[index], f"{self.prefix}row {index}", self.audio_root, check_files=self.audio_root is not None
        )


def load_samples(
    source: Any, audio_root: Optional[Union[str, os.PathLike]] = None, check_files: bool = True
) -> Dataset:
    """
    Training data as a map-style dataset of samples (see [`normalise`]).

    Args:
        source: the path of a JSON Lines or JSON file, of a Parquet file, or of a folder that `save_to_disk` of `datasets`
            wrote; or a dataset or list of records.
        audio_root: the folder that relative paths start from; by default the file's own, and the working directory for
            what is no file.
        check_files: whether the recordings of a JSON file must be there now; without, a wrong path is an error when its
            sample is read.

    Raises:
        DataError: where the source or one of its records cannot be used; with file, line, key and value. Files are
            checked as a whole, and the message says how many records are wrong.
    """
    if not isinstance(source, (str, os.PathLike)):
        if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
            raise DataError(
                f"data of type {type(source).__name__} has no length or no items; pass a file, dataset or list."
            )
        return RowDataset(source, audio_root)
    path = Path(source).expanduser()
    if path.is_dir() or path.suffix == ".parquet":
        return RowDataset(_load_arrow(path), path.parent if audio_root is None else audio_root, str(path))
    return SampleDataset(_checked(path, path.parent if audio_root is None else audio_root, check_files))


def _load_arrow(path: Path) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"reading {path} needs datasets: `pip install datasets`.") from error
    try:
        if path.is_dir():
            loaded = datasets.load_from_disk(str(path))
        else:
            loaded = datasets.load_dataset("parquet", data_files=str(path), split="train")
    except (FileNotFoundError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise DataError(f"{path} cannot be read by datasets: {error}") from error
    if isinstance(loaded, Mapping):
        raise DataError(f"{path} holds the splits {sorted(loaded)}; give the folder of one of them.")
    return loaded


def _checked(path: Path, audio_root: Union[str, os.PathLike], check_files: bool) -> Iterator[dict[str, Any]]:
    """All samples of a file; after the last one, an error if one was wrong."""
    first, wrong = None, 0
    for record in read_records(path):
        try:
            if record.error is not None:
                raise record.error
            sample = normalise(record.value, record.origin, audio_root, check_files)
            if first is None:
                yield sample
        except DataError as error:
            first, wrong = first or error, wrong + 1
    if wrong > 1:
        raise DataError(f"{first}\n{wrong - 1} more are wrong; `moss-audio check-data {path}` lists all.")
    if first is not None:
        raise first


__all__ = ["DataError", "RowDataset", "SampleDataset", "load_samples", "normalise", "read_records"]
