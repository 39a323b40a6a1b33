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
"""From samples to a batch for training: the processor's inputs, padded on the right, and labels on the answers alone.

Recordings are decoded and transformed here, in the workers of the `DataLoader`. Which tokens are labelled follows from
where the chat template puts the answers, token by token, after clips and time markers have been written out.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Optional

import torch
from transformers.utils import logging

from moss_audio.configuration_moss_audio import frames_to_tokens, samples_to_frames
from moss_audio.processing_moss_audio import AUDIO_TOKEN, MossAudioProcessor, decode_base64, load_audio

from .data import SOURCES, DataError, normalise


logger = logging.get_logger(__name__)

IGNORED = -100  # the label that the loss leaves out


class TooLongError(DataError):
    """A sample has more tokens than `max_length`: how many, and how many seconds of sound."""

    def __init__(self, message: str, tokens: int, seconds: float):
        super().__init__(message)
        self.tokens, self.seconds = tokens, seconds


class MossAudioDataCollator:
    """
    Makes a batch of samples.

    Args:
        processor (`MossAudioProcessor`):
            Of the checkpoint that is trained.
        answers ("all" or "last", *optional*, defaults to "all"):
            Which of the assistant's turns are learned.
        system_prompt (`str`, *optional*):
            For samples that have none of their own; by default the chat template's.
        max_length (`int`, *optional*):
            Longest sample in tokens, clips and time markers included. By default what the decoder has positions for.
        too_long ("drop" or "raise", *optional*, defaults to "drop"):
            What becomes of a longer one: it is left out of its batch with a warning that counts, or it is an error. It
            is never cut.
        pad_to_multiple_of (`int`, *optional*):
            Makes the padded length a multiple of this.
        enable_time_marker (`bool`, *optional*):
            Overrides the processor's setting.
        chat_template (`str`, *optional*):
            Another template than the processor's. It must open an answer as `add_generation_prompt=True` does, or have
            `{% generation %}` tags.
        extra_keys (`list[str]`, *optional*):
            Keys of the samples that the batch keeps under `extras`, a list with a value (None where there is none) for
            each row. A model does not take them: whoever asks for them takes `extras` out first.

    ```python
    >>> from moss_audio import MossAudioProcessor
    >>> from moss_audio.training import MossAudioDataCollator, load_samples

    >>> processor = MossAudioProcessor.from_pretrained("OpenMOSS-Team/MOSS-Audio-4B-Instruct")
    >>> samples = load_samples("train.jsonl")
    >>> batch = MossAudioDataCollator(processor)([samples[0], samples[1]])
    ```
    """

    def __init__(
        self,
        processor: MossAudioProcessor,
        answers: Literal["all", "last"] = "all",
        system_prompt: Optional[str] = None,
        max_length: Optional[int] = None,
        too_long: Literal["drop", "raise"] = "drop",
        pad_to_multiple_of: Optional[int] = None,
        enable_time_marker: Optional[bool] = None,
        chat_template: Optional[str] = None,
        extra_keys: Sequence[str] = (),
    ):
        for name, value, choices in (("answers", answers, ("all", "last")), ("too_long", too_long, ("drop", "raise"))):
            if value not in choices:
                raise ValueError(f"`{name}` is {value!r}; expected one of {', '.join(map(repr, choices))}.")
        positions = processor.max_position_embeddings
        if max_length is not None and not 0 < max_length <= positions:
            raise ValueError(f"`max_length` {max_length} must be between 1 and {positions}, the decoder's positions.")
        self.processor = processor
        self.answers = answers
        self.system_prompt = system_prompt
        self.max_length = positions if max_length is None else max_length
        self.too_long = too_long
        self.pad_to_multiple_of = pad_to_multiple_of
        self.enable_time_marker = processor.enable_time_marker if enable_time_marker is None else enable_time_marker
        self.chat_template = chat_template
        self.extra_keys = tuple(extra_keys)
        self.dropped = 0  # in this process
        added = processor.tokenizer.added_tokens_decoder.values()
        control = [AUDIO_TOKEN, *(token.content for token in added if token.special)]
        self._control = re.compile("|".join(map(re.escape, control)))

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """
        Args:
            samples: records of either layout, checked or not (see [`~moss_audio.training.normalise`]).

        Returns:
            `input_ids`, `attention_mask` and `labels` (batch, seq), padded on the right; where there is a clip
            `audio_data` (clips, mels, frames) and `audio_data_seqlens` (clips,); and `extras` if asked for.

        Raises:
            DataError: for a sample that cannot be used; with its origin. Where all samples of a batch are too long.
        """
        conversations, extras = [], {key: [] for key in self.extra_keys}
        for sample in samples:
            try:
                conversations.append(self.load(sample))
            except TooLongError as error:
                if self.too_long == "raise":
                    raise
                self._count_dropped(error)
                continue
            for key, values in extras.items():
                values.append(sample.get(key))
        if not conversations:
            raise DataError(
                f"all {len(samples)} samples of a batch have more than {self.max_length} tokens; raise `max_length`, or take "
                "them out of the data (`moss-audio check-data` lists them)."
            )
        batch = dict(self.encode(conversations))
        return {**batch, "extras": extras} if extras else batch

    def _count_dropped(self, error: TooLongError):
        self.dropped += 1
        if self.dropped & (self.dropped - 1) == 0:  # the 1st, 2nd, 4th, …: a log is no place for all of them
            logger.warning(f"{error} It is left out; so far {self.dropped} were, in this process.")

    # What evaluation, `check-data` and `__call__` have in common, step by step.

    def conversation(self, sample: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The messages of a sample as they are rendered: checked, and with the system prompt of the run."""
        sample = normalise(sample)
        messages = sample["messages"]
        for index, message in enumerate(messages):
            content = message["content"]
            texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
            if found := self._control.search("\n".join([*texts, str(message.get("reasoning_content", ""))])):
                raise DataError(
                    f"{sample['origin']}: `messages[{index}]` holds {found.group()!r}, a token that steers the model; take "
                    "it out of the text."
                )
        if self.system_prompt is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        return messages

    def load(self, sample: Mapping[str, Any]) -> list[dict[str, Any]]:
        """
        The messages of a sample, its recordings decoded: each audio part has `audio`, `(samples,)`.

        Raises:
            DataError: where a recording cannot be read; with the sample's origin.
            TooLongError: where it has more than `max_length` tokens.
        """
        messages = self.decode(sample)
        self.measure(messages, sample.get("origin", "sample"))
        return messages

    def decode(self, sample: Mapping[str, Any]) -> list[dict[str, Any]]:
        """`load`, however long the sample is."""
        origin, messages = sample.get("origin", "sample"), []
        for index, message in enumerate(self.conversation(sample)):
            content = message["content"]
            if not isinstance(content, str):
                content = [self._load_part(part, f"{origin}: `messages[{index}]`") for part in content]
            messages.append({**message, "content": content})
        return messages

    def measure(self, messages: list[dict[str, Any]], origin: str) -> tuple[float, int]:
        """Seconds of sound and tokens of messages whose recordings are decoded; [`TooLongError`] beyond `max_length`."""
        clips = [part["audio"].shape[0] for part in audio_parts(messages)]
        seconds, tokens = sum(clips) / self.processor.sampling_rate, self.count_tokens(messages, clips)
        if tokens > self.max_length:
            raise TooLongError(
                f"{origin}: this sample has {tokens} tokens ({seconds:.0f} s of sound); `max_length` is {self.max_length}.",
                tokens,
                seconds,
            )
        return seconds, tokens

    def _load_part(self, part: dict[str, Any], where: str) -> dict[str, Any]:
        if part["type"] != "audio":
            return part
        try:
            return {"type": "audio", "audio": load_audio(recording(part), target_rate=self.processor.sampling_rate)}
        except (OSError, ValueError) as error:
            raise DataError(f"{where}: {error}") from error

    def count_tokens(self, messages: list[dict[str, Any]], clips: Sequence[int]) -> int:
        """Tokens of a whole conversation whose clips have so many samples at the processor's rate."""
        hop = self.processor.mel_config["mel_hop_length"]
        tokens = [frames_to_tokens(samples_to_frames(samples, hop)) for samples in clips]
        prompt = self.processor.apply_chat_template(messages, self.chat_template)
        (prompt,) = self.processor.expand_clips([prompt], tokens, self.enable_time_marker)
        return len(self.processor.tokenizer(prompt)["input_ids"])

    def encode(self, conversations: list[list[dict[str, Any]]]) -> dict[str, torch.Tensor]:
        """Inputs and labels of conversations whose recordings are loaded."""
        batch = self.processor.apply_chat_template(
            conversations,
            self.chat_template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            enable_time_marker=self.enable_time_marker,
            padding_side="right",
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        ids, answers = batch["input_ids"], batch.pop("assistant_masks").bool()
        answers = self._with_ends(ids, answers) & batch["attention_mask"].bool()
        if self.answers == "last":
            answers = last_run(answers)
        batch["labels"] = ids.masked_fill(~answers, IGNORED)
        return batch

    def _with_ends(self, ids: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
        """A template's own tags may end an answer before the token that ends its turn: it is learned, too."""
        follows = torch.nn.functional.pad(answers, (1, 0))[:, :-1]
        return answers | (follows & (ids == self.processor.tokenizer.eos_token_id))


def audio_parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The audio parts of a conversation, in order."""
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return [part for content in contents for part in content if part["type"] == "audio"]


def recording(part: dict[str, Any]) -> Any:
    """What an audio part holds, as `load_audio` takes it."""
    key = next(key for key in SOURCES if key in part)
    return decode_base64(part[key]) if key == "base64" else part[key]


def last_run(mask: torch.Tensor) -> torch.Tensor:
    """`mask` (batch, seq) with nothing left but the last run of True in each row."""
    starts = mask & ~torch.nn.functional.pad(mask, (1, 0))[:, :-1]
    position = torch.arange(mask.shape[1], device=mask.device)
    last = (starts * position).amax(1, keepdim=True)
    return mask & (position >= last)


__all__ = ["MossAudioDataCollator", "TooLongError"]
