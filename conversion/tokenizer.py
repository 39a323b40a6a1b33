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
"""A tokenizer in which the audio tokens have their names and their released ids, and every other token is as it was.

The released tokenizer is Qwen3's. Its files are edited, not saved anew: what Transformers 5 saves, Transformers 4 cannot
read in full, and either may be asked to read the result.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple, Optional

from moss_audio.processing_moss_audio import AUDIO_END_TOKEN, AUDIO_START_TOKEN, AUDIO_TOKEN, QWEN3_AUDIO_TOKEN

from . import ConversionError
from .weights import read_json, write_json


FAST, CONFIG, VOCAB, MERGES = "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"
ADDED, SPECIAL = "added_tokens.json", "special_tokens_map.json"
FILES = (FAST, CONFIG, VOCAB, MERGES, ADDED, SPECIAL)
END_OF_TURN, PADDING = "<|im_end|>", "<|endoftext|>"


class AudioIds(NamedTuple):
    """The ids of the audio tokens."""

    audio_token_id: int = 151654
    audio_start_id: int = 151669
    audio_end_id: int = 151670

    @property
    def names(self) -> dict[int, str]:
        """Names by id, in the order of the ids."""
        return dict(sorted(zip(self, (AUDIO_TOKEN, AUDIO_START_TOKEN, AUDIO_END_TOKEN))))


class FastFile:
    """
    A tokenizer.json, of which the list of added tokens is read and written, and the rest stays the bytes that it is: as
    objects its vocabulary and merges would take more memory than anything else in a conversion.

    Raises:
        ConversionError: where it is not the file of a BPE tokenizer.
    """

    def __init__(self, path: Path):
        self.path = path
        content = path.read_bytes()
        if not content.rstrip().endswith(b"}"):
            raise ConversionError(f"{path} is not whole; download it again.")
        self.added, start, end = self._value(content, "added_tokens", "[")
        self.before, self.after = content[:start], content[end:]

    def _value(self, content: bytes, key: str, opening: str) -> tuple[Any, int, int]:
        """The value of a key, and where it stands. No token of a vocabulary has a list or an object for its id."""
        text = content.decode("latin-1")  # a character for each byte; the structure of JSON is ASCII
        found = re.search(rf'"{key}"\s*:\s*(?={re.escape(opening)})', text)
        if found is None:
            raise ConversionError(f"{self.path} has no `{key}`: it is not the file of a BPE tokenizer.")
        try:
            end = json.JSONDecoder().raw_decode(text, found.end())[1]
            return json.loads(content[found.end() : end]), found.end(), end
        except ValueError as error:
            raise ConversionError(f"{self.path} cannot be read as JSON: {error}.") from error

    def vocab(self) -> dict[str, int]:
        """The vocabulary, without the added tokens."""
        return self._value(self.after, "vocab", "{")[0]

    def rename(self, token_id: int, old: str, new: str):
        """Gives a token another name, also where it is a key of the vocabulary or of the post-processor."""
        for token in self.added:
            if token["id"] == token_id:
                token.update(content=new, special=True)
        self.before, self.after = (
            content.replace(f"{json.dumps(old)}:".encode(), f"{json.dumps(new)}:".encode())
            for content in (self.before, self.after)
        )

    def write(self, path: Path):
        """Writes the file."""
        with open(path, "wb") as file:
            file.write(self.before)
            file.write(json.dumps(self.added, indent=2, ensure_ascii=False).encode())
            file.write(self.after)


class TokenizerFiles:
    """
    The files of a tokenizer: a tokenizer.json, or vocab.json and merges.txt, or both, and what goes with them.

    Raises:
        ConversionError: where there is no tokenizer, or its files are broken.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        present = {name for name in FILES if (folder / name).is_file()}
        if FAST not in present and not {VOCAB, MERGES} <= present:
            raise ConversionError(
                f"{folder} has no tokenizer: neither {FAST}, nor {VOCAB} and {MERGES}. Copy those of its Qwen3 decoder there."
            )
        self.json = {name: read_json(folder / name) for name in (CONFIG, ADDED, SPECIAL) if name in present}
        self.json.setdefault(CONFIG, {"tokenizer_class": "Qwen2Tokenizer"})
        self.fast = FastFile(folder / FAST) if FAST in present else None
        self.vocab: dict[str, int] = read_json(folder / VOCAB) if VOCAB in present else self.fast.vocab()
        self.copied = present & {VOCAB, MERGES}  # files that stay as they are
        self.added = self._added()

    def _added(self) -> dict[int, dict[str, Any]]:
        """Added tokens by id, whichever file names them."""
        added: dict[int, dict[str, Any]] = {}
        for token in self.fast.added if self.fast else ():
            added[token["id"]] = {name: value for name, value in token.items() if name != "id"}
        for token_id, token in self.json[CONFIG].get("added_tokens_decoder", {}).items():
            added.setdefault(int(token_id), token)
        for content, token_id in self.json.get(ADDED, {}).items():
            added.setdefault(token_id, _special(content))
        return added

    @property
    def free_id(self) -> int:
        """The first id above all tokens: the next added one must be there."""
        return 1 + max(max(self.added, default=-1), max(self.vocab.values(), default=-1))

    def id_of(self, content: str) -> Optional[int]:
        """The id of a token, None where there is none."""
        for token_id, token in self.added.items():
            if token["content"] == content:
                return token_id
        return self.vocab.get(content)

    def suggest_audio_ids(self) -> AudioIds:
        """Where the audio tokens are or may be put: by their names, at Qwen3's `<|vision_pad|>`, or above all others."""
        free = self.free_id
        ids = []
        for names in ((AUDIO_TOKEN, QWEN3_AUDIO_TOKEN), (AUDIO_START_TOKEN,), (AUDIO_END_TOKEN,)):
            found = [token_id for token_id in map(self.id_of, names) if token_id is not None]
            ids.append(found[0] if found else free)
            free += not found
        return AudioIds(*ids)

    def name_audio_tokens(self, ids: AudioIds):
        """
        Gives the audio tokens their names: the one that Qwen3 calls `<|vision_pad|>` is renamed, others are added.

        Raises:
            ConversionError: where other tokens have these ids or names, or tokens between are missing.
        """
        for token_id, name in ids.names.items():
            found, holder = self.id_of(name), self._at(token_id)
            if found not in (None, token_id):
                raise ConversionError(
                    f"the tokenizer of {self.folder} has {name} at {found}; its id must be {token_id}."
                )
            if holder == QWEN3_AUDIO_TOKEN and name == AUDIO_TOKEN:
                self._rename(token_id, name)
            elif holder is None:
                if token_id != self.free_id:
                    raise ConversionError(
                        f"the tokenizer of {self.folder} ends before id {self.free_id}: {name} cannot be added at "
                        f"{token_id}. It is not the tokenizer of this checkpoint."
                    )
                self._add(token_id, name)
            elif holder != name:
                raise ConversionError(
                    f"the tokenizer of {self.folder} has {holder!r} at {token_id}, where {name} belongs."
                )
        self._list_special_tokens(list(ids.names.values()))

    def _at(self, token_id: int) -> Optional[str]:
        if token_id in self.added:
            return self.added[token_id]["content"]
        if token_id >= self.free_id:
            return None
        return next((content for content, index in self.vocab.items() if index == token_id), None)

    def _rename(self, token_id: int, name: str):
        old = self._at(token_id)
        if old in self.vocab:
            self.vocab[name] = self.vocab.pop(old)
            self.copied.discard(VOCAB)
        if old in self.json.get(ADDED, ()):
            self.json[ADDED][name] = self.json[ADDED].pop(old)
        self.added[token_id] = {**self.added.get(token_id, _special(name)), "content": name, "special": True}
        if self.fast:
            self.fast.rename(token_id, old, name)

    def _add(self, token_id: int, name: str):
        self.added[token_id] = _special(name)
        if self.fast:
            self.fast.added.append({"id": token_id, **_special(name)})
        if ADDED in self.json:
            self.json[ADDED][name] = token_id

    def _list_special_tokens(self, names: list[str]):
        """The settings that both major versions of Transformers read in the same way."""
        config = self.json[CONFIG]
        config.pop("chat_template", None)  # it is a file of its own
        config.pop("backend", None)
        if config.get("tokenizer_class") == "TokenizersBackend":  # unknown to version 4
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config["added_tokens_decoder"] = {str(token_id): self.added[token_id] for token_id in sorted(self.added)}
        extra = config.pop("extra_special_tokens", None) or []  # version 5's name; version 4 wants a dict there
        if isinstance(extra, dict):
            config["extra_special_tokens"] = extra
            extra = []
        for settings in (config, self.json.get(SPECIAL)):
            if settings is None:
                continue
            listed = [_content(token) for token in [*(settings.get("additional_special_tokens") or []), *extra]]
            listed = [AUDIO_TOKEN if content == QWEN3_AUDIO_TOKEN else content for content in listed]
            settings["additional_special_tokens"] = list(dict.fromkeys([*listed, *names]))
            # Some Qwen3 checkpoints pad with this token, which now means sound.
            pads = (None, QWEN3_AUDIO_TOKEN, AUDIO_TOKEN)
            if _content(settings.get("pad_token")) in pads and self.id_of(PADDING) is not None:
                settings["pad_token"] = PADDING
            if settings.get("eos_token") is None and self.id_of(END_OF_TURN) is not None:
                settings["eos_token"] = END_OF_TURN

    @property
    def ends(self) -> dict[str, int]:
        """What generation needs to know: `eos_token_id` and `pad_token_id`, where the tokenizer has them."""
        names = {"eos_token_id": "eos_token", "pad_token_id": "pad_token"}
        ids = {key: self.id_of(_content(self.json[CONFIG].get(name)) or "") for key, name in names.items()}
        return {key: token_id for key, token_id in ids.items() if token_id is not None}

    def write(self, folder: Path):
        """Writes the files into a folder."""
        for name, content in self.json.items():
            write_json(folder / name, content)
        if self.fast:
            self.fast.write(folder / FAST)
        if (self.folder / VOCAB).is_file() and VOCAB not in self.copied:
            write_json(folder / VOCAB, self.vocab)
        for name in sorted(self.copied):
            shutil.copyfile(self.folder / name, folder / name)


def _special(content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": content, **flags, "special": True}


def _content(token: Any) -> Optional[str]:
    return token.get("content") if isinstance(token, dict) else token
