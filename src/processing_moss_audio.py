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
"""From a recording and a text to the model's inputs, and from its tokens back to text.

The way of the data, one function a step: `load_audio` (anything to 16 kHz mono), `log_mel` (features of a clip alone),
`expand_clips` (placeholders to audio tokens and time markers, as text), the tokenizer (once), and back.
"""

import dataclasses
import functools
import inspect
import itertools
import json
import os
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Optional, Union

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AddedToken, BatchFeature
from transformers.audio_utils import mel_filter_bank
from transformers.processing_utils import AudioKwargs, ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils.chat_template_utils import render_jinja_template

from .audio_moss_audio import AudioSource, decode_base64, is_samples, load_audio
from .configuration_moss_audio import (
    MossAudioConfig,
    decoder_positions,
    frames_to_tokens,
    longest_clip_seconds,
    marker_seconds,
    samples_to_frames,
    span_tokens,
)
from .generation_moss_audio import thinking_token_ids
from .tasks_moss_audio import TaskRequests
from .transcripts_moss_audio import split_reasoning


AUDIO_TOKEN, AUDIO_START_TOKEN, AUDIO_END_TOKEN = "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"
QWEN3_AUDIO_TOKEN = "<|vision_pad|>"  # what the tokenizer of the released checkpoints calls the audio token
CLIP = AUDIO_START_TOKEN + AUDIO_TOKEN + AUDIO_END_TOKEN
_SPAN = re.compile(
    re.escape(AUDIO_START_TOKEN)
    + f"(?:{re.escape(AUDIO_TOKEN)}|{re.escape(QWEN3_AUDIO_TOKEN)})+"
    + re.escape(AUDIO_END_TOKEN)
)
_STRAY = re.compile("|".join(map(re.escape, (AUDIO_TOKEN, QWEN3_AUDIO_TOKEN, AUDIO_START_TOKEN, AUDIO_END_TOKEN))))

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")

RELEASED_MEL_CONFIG = {
    "mel_sr": 16000,
    "mel_dim": 128,
    "mel_n_fft": 400,
    "mel_hop_length": 160,
    "mel_dtype": "bfloat16",
    "use_whisper_feature_extractor": True,
}
FRAMES_PER_BLOCK = 1500  # of the Fourier transform: its memory is bounded, and stays in a processor's cache

# One turn of a user with a clip and a text gives the prompt that the released checkpoints were trained with. Reasoning
# stays in answers after the last question only, as in Qwen3's template.
CHAT_TEMPLATE = """\
{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}
{%- set turns = namespace(last_user=-1, index=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{%- set turns.last_user = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set turns.index = loop.index0 %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' and message.reasoning_content and turns.index > turns.last_user %}
        {{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
    {%- endif %}
    {%- if message.content is string %}
        {%- set parts = [{'type': 'text', 'text': message.content}] %}
    {%- else %}
        {%- set parts = message.content or [] %}
    {%- endif %}
    {%- for part in parts %}
        {%- if part.type == 'audio' %}
            {{- '\\n' if loop.previtem is defined and loop.previtem.type != 'audio' }}
            {{- '<|audio_bos|><|AUDIO|><|audio_eos|>' + ('' if loop.last else '\\n') }}
        {%- elif message.role == 'assistant' and turns.index < turns.last_user and '</think>' in part.text %}
            {{- part.text.split('</think>')[-1].lstrip('\\n') }}
        {%- else %}
            {{- part.text }}
        {%- endif %}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""


# ------------------------------------------------------------------------------------------------------------ features


@functools.lru_cache(maxsize=8)
def _mel_filters(num_mel_bins: int, n_fft: int, sampling_rate: int) -> torch.Tensor:
    """Slaney mel filters from 0 Hz to 8 kHz, `(num_mel_bins, n_fft // 2 + 1)`, float32."""
    filters = mel_filter_bank(
        num_frequency_bins=n_fft // 2 + 1,
        num_mel_filters=num_mel_bins,
        min_frequency=0.0,
        max_frequency=8000.0,
        sampling_rate=sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters.T.astype(np.float32))


def log_mel(
    samples: torch.Tensor,
    num_mel_bins: int = 128,
    n_fft: int = 400,
    hop_length: int = 160,
    sampling_rate: int = 16000,
) -> torch.Tensor:
    """
    Log-mel features of one clip, as Whisper's but without padding to 30 s or truncation.

    Args:
        samples: `torch.FloatTensor` of shape `(samples,)`, mono at `sampling_rate`; the work is done on its device.

    Returns:
        `torch.FloatTensor` of shape `(num_mel_bins, samples // hop_length)`, float32: log10 of the mel power, clamped
        at 1e-10, floored at the clip's maximum less 8, then `(x + 4) / 4`. Silence gives -1.5 everywhere.
    """
    frames = samples_to_frames(samples.shape[0], hop_length)
    edge = n_fft // 2
    padded = torch.nn.functional.pad(samples[None], (edge, edge), mode="reflect")[0]
    window = torch.hann_window(n_fft, device=samples.device)
    # A filter for each real and each imaginary part: their squares are added up where the bins are.
    filters = _mel_filters(num_mel_bins, n_fft, sampling_rate).to(samples.device).repeat_interleave(2, dim=1)
    features = torch.empty(num_mel_bins, frames, device=samples.device)
    for start in range(0, frames, FRAMES_PER_BLOCK):
        count = min(FRAMES_PER_BLOCK, frames - start)
        block = padded[start * hop_length : (start + count - 1) * hop_length + n_fft]
        spectrum = torch.stft(block, n_fft, hop_length, window=window, center=False, return_complex=True)
        squares = torch.view_as_real(spectrum.T).flatten(1).square_()  # (frames, 2 * bins)
        features[:, start : start + count] = filters @ squares.T
    features.clamp_(min=1e-10).log10_()
    return features.clamp_(min=features.max() - 8).add_(4).div_(4)


# ---------------------------------------------------------------------------------------------------------------- text


def expand_clip(tokens: int, enable_time_marker: bool = True, audio_token: str = AUDIO_TOKEN) -> str:
    """
    What stands in a prompt for a clip of `tokens` audio tokens: the tokens, with the elapsed seconds ("2", "4", …)
    written after every 25 of them.
    """
    parts, done = [], 0
    for marker, second in enumerate(marker_seconds(tokens) if enable_time_marker else (), start=1):
        parts.append(audio_token * (25 * marker - done) + str(second))
        done = 25 * marker
    return "".join(parts) + audio_token * (tokens - done)


def default_prompt(text: str, clips: int) -> str:
    """The prompt that a bare user text is wrapped in, with a line for each clip."""
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{(CLIP + chr(10)) * clips}{text}<|im_end|>\n<|im_start|>assistant\n"
    )


def count_clips(text: str) -> int:
    """How many clips a text has room for: spans of `<|audio_bos|><|AUDIO|><|audio_eos|>`."""
    return len(_SPAN.findall(text))


# ----------------------------------------------------------------------------------------------------------- processor


class MossAudioAudioKwargs(AudioKwargs, total=False):
    """
    enable_time_marker (`bool`, *optional*):
        Overrides the processor's setting for this call.
    device (`str` or `torch.device`, *optional*):
        Where the features are computed and the tensors returned; by default each clip's own device, and the CPU for
        what is not a tensor.
    """

    enable_time_marker: Optional[bool]
    device: Optional[Union[str, torch.device]]


class MossAudioProcessorKwargs(ProcessingKwargs, total=False):
    audio_kwargs: MossAudioAudioKwargs
    _defaults = {"text_kwargs": {"padding": True}, "common_kwargs": {"return_tensors": "pt"}}


class MossAudioProcessor(ProcessorMixin, TaskRequests):
    r"""
    Turns recordings and texts into the inputs of [`MossAudioModel`], and its tokens into text.

    It reads the folders of released checkpoints, its own, and a folder that holds a tokenizer and nothing else.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The decoder's tokenizer. Where it has no tokens for the ends of a clip, as the released one, they are added.
            Texts are padded on the left.
        mel_config (`dict`, *optional*):
            The features: `mel_sr` 16000, `mel_dim` 128, `mel_n_fft` 400, `mel_hop_length` 160. `mel_dtype` and
            `use_whisper_feature_extractor` are kept for other readers of the file and have no effect.
        enable_time_marker (`bool`, *optional*, defaults to `True`):
            Whether the elapsed seconds are written between the audio tokens.
        audio_token_id (`int`, *optional*, defaults to 151654):
            The token that stands for 80 ms of sound, written `<|AUDIO|>`.
        audio_start_id (`int`, *optional*, defaults to 151669):
            The token before a clip, written `<|audio_bos|>`.
        audio_end_id (`int`, *optional*, defaults to 151670):
            The token after a clip, written `<|audio_eos|>`.
        max_position_embeddings (`int`, *optional*, defaults to 40960):
            Positions of the decoder: a longer prompt is refused before its features are computed.
        chat_template (`str`, *optional*):
            The chat template; by default the one that agrees with the released prompts.

    Raises:
        ValueError: where the tokenizer cannot have the audio tokens at these ids.

    ```python
    >>> from moss_audio import MossAudioProcessor

    >>> processor = MossAudioProcessor.from_pretrained("OpenMOSS-Team/MOSS-Audio-4B-Instruct")
    >>> inputs = processor(text="Describe this audio.", audio="recording.wav")
    >>> {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    ```
    """

    attributes = ["tokenizer"]
    tokenizer_class = "AutoTokenizer"
    valid_processor_kwargs = MossAudioProcessorKwargs

    def __init__(
        self,
        tokenizer=None,
        mel_config: Optional[dict[str, Any]] = None,
        enable_time_marker: bool = True,
        audio_token_id: int = 151654,
        audio_start_id: int = 151669,
        audio_end_id: int = 151670,
        max_position_embeddings: int = 40960,
        chat_template: Optional[str] = None,
    ):
        self.mel_config = {**RELEASED_MEL_CONFIG, **(mel_config or {})}
        self.enable_time_marker = enable_time_marker
        self.audio_token_id = audio_token_id
        self.audio_start_id = audio_start_id
        self.audio_end_id = audio_end_id
        self.max_position_embeddings = max_position_embeddings
        super().__init__(tokenizer, chat_template=CHAT_TEMPLATE if chat_template is None else chat_template)
        tokenizer.padding_side = "left"
        ids = {AUDIO_TOKEN: audio_token_id, AUDIO_START_TOKEN: audio_start_id, AUDIO_END_TOKEN: audio_end_id}
        self._names = {name: _token_at(tokenizer, ids[name], name) for name in sorted(ids, key=ids.get)}

    @classmethod
    def get_processor_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        template = kwargs.get("chat_template")
        hub = {name: kwargs[name] for name in ("cache_dir", "local_files_only", "revision", "token") if name in kwargs}
        processor_dict, kwargs = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if "max_position_embeddings" not in processor_dict:  # a key of ours
            # The template of a released folder ignores `enable_thinking`, and that of a bare tokenizer knows no audio:
            # only a folder that this class wrote has one of ours, or one that its user chose.
            processor_dict.pop("chat_template", None)
            processor_dict.update(_positions_of_folder(pretrained_model_name_or_path, hub))
        if template is not None:
            processor_dict["chat_template"] = template
        return processor_dict, kwargs

    def save_pretrained(
        self, save_directory: Union[str, os.PathLike], push_to_hub: bool = False, **kwargs
    ) -> list[str]:
        """Writes a folder that either major version of Transformers reads (see [`ProcessorMixin.save_pretrained`])."""
        saved = super().save_pretrained(save_directory, **kwargs)
        self.__dict__.pop("auto_map", None)  # of the saved files; this processor is the same as before
        path = os.path.join(save_directory, "tokenizer_config.json")
        with open(path, encoding="utf-8") as file:
            tokenizer_config = json.load(file)
        portable = dict(tokenizer_config)
        if isinstance(portable.get("extra_special_tokens"), list):
            # Version 5 reads this list under its older name, too; version 4 fails on the newer one.
            portable["additional_special_tokens"] = portable.pop("extra_special_tokens")
        if portable.get("tokenizer_class") == "TokenizersBackend":  # the same class, by the name that both know
            portable["tokenizer_class"] = "PreTrainedTokenizerFast"
        if portable != tokenizer_config:
            with open(path, "w", encoding="utf-8") as file:
                json.dump(portable, file, indent=2, ensure_ascii=False)
        if push_to_hub:
            options = ("commit_message", "private", "token", "revision")
            repository = kwargs.get("repo_id", os.path.basename(os.path.normpath(save_directory)))
            self.push_to_hub(repository, **{name: kwargs[name] for name in options if name in kwargs})
        return saved

    @property
    def config(self) -> SimpleNamespace:
        """The settings as attributes (`processor.config.mel_sr`), as clients of the published processor read them."""
        names = ("enable_time_marker", "audio_token_id", "audio_start_id", "audio_end_id")
        return SimpleNamespace(**self.mel_config, **{name: getattr(self, name) for name in names})

    @property
    def sampling_rate(self) -> int:
        """Samples per second that the features are computed from."""
        return self.mel_config["mel_sr"]

    @property
    def audio_token(self) -> str:
        """The tokenizer's name of the audio token."""
        return self._names[AUDIO_TOKEN]

    @property
    def thinking_token_ids(self) -> dict[str, Any]:
        """The tokens that `generate(thinking_budget=…, thinking_token_ids=…)` must know of, by the tokenizer's ids."""
        return thinking_token_ids(self.tokenizer)

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "audio_data", "audio_data_seqlens"]

    def __call__(
        self,
        text: Optional[Union[str, list[str]]] = None,
        audio: Optional[Union[AudioSource, list]] = None,
        audios: Optional[Union[AudioSource, list]] = None,
        **kwargs: Unpack[MossAudioProcessorKwargs],
    ) -> BatchFeature:
        r"""
        Args:
            text (`str` or `list[str]`, *optional*):
                A text, or a batch of them. One that holds `<|audio_bos|><|AUDIO|><|audio_eos|>` is a whole prompt, whose
                spans are filled in order; any other is wrapped in the default prompt, with a line for each clip.
            audio (*optional*):
                The clips: for one text a clip or a list of clips; for several texts a list with a clip, a list of
                clips or None for each, or one flat list that fills the spans of all texts in order. See [`load_audio`]
                for what a clip may be.
            audios (*optional*):
                Another name of `audio`.
            sampling_rate (`int`, *optional*):
                Samples per second of arrays and tensors; 16000 where it is not given. Files know theirs.
            enable_time_marker (`bool`, *optional*):
                Overrides the processor's setting for this call.
            padding (`bool` or `str`, *optional*, defaults to `True`):
                As tokenizers take it; prompts are padded on the left.
            return_tensors (`str`, *optional*, defaults to `"pt"`):
                "pt" for torch tensors, "np" for NumPy arrays, None for lists of token ids.
            device (`str` or `torch.device`, *optional*):
                Where the features are computed and the tensors returned; by default each clip's own device, and the
                CPU for what is not a tensor.
            kwargs:
                Further arguments of the tokenizer. All but the clips and texts may also stand in `text_kwargs`,
                `audio_kwargs` or `common_kwargs`, as with every processor.

        Returns:
            [`BatchFeature`] with `input_ids` and `attention_mask` (batch, seq), and where there is a clip `audio_data`
            (clips, mels, frames), float32, zeros behind each clip's end, and `audio_data_seqlens` (clips,), frames.

        Raises:
            ValueError: where text and clips do not fit each other, a clip is no sound or too short, or the prompt has
                more tokens than the decoder has positions. Nothing heavy has been done by then.
        """
        if audio is not None and audios is not None:
            raise ValueError("`audio` and `audios` are two names of one argument; pass one of them.")
        if text is None or isinstance(text, (list, tuple)) and not text:
            raise ValueError(f"`text` is {text!r}; pass a question or a task, e.g. text='Describe this audio.'")
        texts = [text] if isinstance(text, str) else list(text)
        clips = clips_of_texts(texts, audios if audio is None else audio)
        prompts = [as_prompt(text, len(row), index) for index, (text, row) in enumerate(zip(texts, clips))]
        return self._process(prompts, clips, **kwargs)

    def _process(
        self,
        prompts: list[str],
        clips: list[list[AudioSource]],
        assistant_spans: Optional[list[list[tuple[int, int]]]] = None,
        **kwargs: Unpack[MossAudioProcessorKwargs],
    ) -> BatchFeature:
        """
        Model inputs for whole prompts and the clips of each; see `__call__`. Where `assistant_spans` gives characters
        of the prompts, `assistant_masks` (batch, seq) is 1 for the tokens that they become.
        """
        init_kwargs = self.tokenizer.init_kwargs
        kwargs = self._merge_kwargs(MossAudioProcessorKwargs, tokenizer_init_kwargs=init_kwargs, **kwargs)
        text_kwargs, audio_kwargs = kwargs["text_kwargs"], kwargs["audio_kwargs"]
        return_tensors, device = text_kwargs.pop("return_tensors", None), audio_kwargs.get("device")
        samples = self._load(clips, audio_kwargs.get("sampling_rate"), device)
        lengths = [samples_to_frames(clip.shape[0], self.mel_config["mel_hop_length"]) for clip in samples]
        markers = audio_kwargs.get("enable_time_marker")
        markers = self.enable_time_marker if markers is None else markers
        tokens = [frames_to_tokens(length) for length in lengths]
        if assistant_spans is None:
            encoding = self.tokenizer(self.expand_clips(prompts, tokens, markers), **text_kwargs)
        else:
            expanded, assistant_spans = self._expand_with_spans(prompts, assistant_spans, tokens, markers)
            encoding = self.tokenizer(expanded, **{**text_kwargs, "return_offsets_mapping": True})
            encoding["assistant_masks"] = _tokens_in_spans(encoding.pop("offset_mapping"), assistant_spans)
        self._check_tokens(encoding["input_ids"], clips, lengths, markers)
        data = dict(encoding)
        if samples:
            data["audio_data"] = _stack([self.extract_features(clip) for clip in samples])
            data["audio_data_seqlens"] = torch.tensor(lengths)
        inputs = BatchFeature(data, tensor_type=return_tensors)
        return inputs if device is None else inputs.to(device)

    def _load(
        self, clips: list[list[AudioSource]], sampling_rate: Optional[int], device: Optional[Union[str, torch.device]]
    ) -> list[torch.Tensor]:
        """All clips of all texts as waveforms; an error says which clip."""
        samples = []
        for index, source in enumerate(clip for row in clips for clip in row):
            try:
                loaded = load_audio(source, sampling_rate, self.sampling_rate)
            except FileNotFoundError as error:
                raise FileNotFoundError(f"clip {index}: {error}") from error
            except ValueError as error:
                raise ValueError(f"clip {index}: {error}") from error
            samples.append(loaded if device is None else loaded.to(device))
        return samples

    def extract_features(self, samples: torch.Tensor) -> torch.Tensor:
        """Log-mel features `(mels, frames)` of one clip `(samples,)` at `sampling_rate`: see [`log_mel`]."""
        names = {"num_mel_bins": "mel_dim", "n_fft": "mel_n_fft", "hop_length": "mel_hop_length"}
        options = {name: int(self.mel_config[key]) for name, key in names.items()}
        return log_mel(samples, sampling_rate=int(self.sampling_rate), **options)

    def expand_clips(self, prompts: list[str], tokens: list[int], enable_time_marker: bool = True) -> list[str]:
        """Fills the spans of prompts, in order, with clips of so many audio tokens; in the tokenizer's own names."""
        remaining = iter(tokens)
        start, end = self._names[AUDIO_START_TOKEN], self._names[AUDIO_END_TOKEN]

        def fill(span: re.Match) -> str:
            return start + expand_clip(next(remaining), enable_time_marker, self.audio_token) + end

        return [_SPAN.sub(fill, prompt) for prompt in prompts]

    def _expand_with_spans(
        self, prompts: list[str], spans: list[list[tuple[int, int]]], tokens: list[int], enable_time_marker: bool
    ) -> tuple[list[str], list[list[tuple[int, int]]]]:
        """`expand_clips`, and where in the expanded prompts the characters of `spans` (no clip crosses an end) are."""
        cuts = [[0, *(end for span in row for end in span), len(text)] for text, row in zip(prompts, spans)]
        pieces = [text[start:end] for text, row in zip(prompts, cuts) for start, end in zip(row, row[1:])]
        pieces = iter(self.expand_clips(pieces, tokens, enable_time_marker))
        expanded, moved = [], []
        for row in cuts:
            parts = [next(pieces) for _ in row[1:]]
            ends = list(itertools.accumulate(map(len, parts)))
            expanded.append("".join(parts))
            moved.append(list(zip(ends[:-1:2], ends[1::2])))
        return expanded, moved

    def _check_tokens(self, input_ids: list[list[int]], clips: list[list], lengths: list[int], markers: bool):
        """Refuses prompts that were cut inside a clip or are longer than the decoder's positions."""
        remaining = iter(lengths)
        for ids, row in zip(input_ids, clips):
            tokens = [frames_to_tokens(next(remaining)) for _ in row]
            if ids.count(self.audio_token_id) != sum(tokens):
                raise ValueError(
                    f"`truncation` left {ids.count(self.audio_token_id)} of a prompt's {sum(tokens)} audio tokens; a clip "
                    "must stay whole: shorten the recording, or leave `truncation` out."
                )
            if self.max_position_embeddings and tokens and len(ids) > self.max_position_embeddings:
                text = len(ids) - sum(span_tokens(count, markers) for count in tokens)
                longest = longest_clip_seconds(self.max_position_embeddings, max(0, text), markers)
                raise ValueError(
                    f"`audio` of {sum(tokens) * 0.08:.0f} s makes a prompt of {len(ids)} tokens; the decoder has "
                    f"{self.max_position_embeddings} positions. The longest that fits beside this text is {longest} s: "
                    "cut the recording into pieces, as the pipeline does with `chunk_length_s`."
                )

    def pad(self, features: list[Mapping[str, torch.Tensor]]) -> BatchFeature:
        """
        Joins outputs of the processor into one batch: rows padded on the tokenizer's `padding_side` (the left), clips
        in the order of the rows.

        Args:
            features: outputs of the processor, with tensors.

        Returns:
            [`BatchFeature`] as from one call for all of them.
        """
        rows = [
            ids[mask.bool()]
            for feature in features
            for ids, mask in zip(feature["input_ids"], feature["attention_mask"])
        ]
        side = self.tokenizer.padding_side
        data = {
            "input_ids": pad_sequence(rows, True, self.tokenizer.pad_token_id, side),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], True, 0, side),
        }
        clips = [
            clip[:, :length]
            for feature in features
            if feature.get("audio_data") is not None
            for clip, length in zip(feature["audio_data"], feature["audio_data_seqlens"].tolist())
        ]
        if clips:
            data["audio_data"] = _stack(clips)
            data["audio_data_seqlens"] = torch.tensor([clip.shape[1] for clip in clips])
        return BatchFeature(data)

    def apply_chat_template(
        self,
        conversation: Union[list[dict[str, Any]], list[list[dict[str, Any]]]],
        chat_template: Optional[str] = None,
        tokenize: bool = False,
        return_dict: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_assistant_tokens_mask: bool = False,
        processor_kwargs: Optional[dict[str, Any]] = None,
        **kwargs,
    ) -> Union[str, list[str], torch.Tensor, BatchFeature]:
        r"""
        Renders a conversation, or a batch of them, and on request turns it into model inputs.

        Args:
            conversation (`list[dict]` or `list[list[dict]]`):
                Messages with `role` ("system", "user" or "assistant") and `content`: a string, or a list of
                `{"type": "text", "text": …}` and `{"type": "audio", …}`, the latter with one of `path`, `url`,
                `audio` (anything that [`load_audio`] takes) or `base64`. Messages and their items may be dataclasses or
                models of pydantic instead, such as chat clients return.
            chat_template (`str`, *optional*):
                Another template, or the name of one of the processor's.
            tokenize (`bool`, *optional*, defaults to `False`):
                Whether to load the audio and return model inputs instead of text.
            return_dict (`bool`, *optional*, defaults to `False`):
                With `tokenize`, whether to return all inputs instead of `input_ids` alone.
            add_generation_prompt (`bool`, *optional*, defaults to `False`):
                Whether to open the assistant's turn.
            continue_final_message (`bool`, *optional*, defaults to `False`):
                Whether to leave the last message open, to be continued.
            return_assistant_tokens_mask (`bool`, *optional*, defaults to `False`):
                With `tokenize` and `return_dict`, whether to return `assistant_masks` (batch, seq) too: 1 for the
                tokens of the assistant's answers. These are what the template has between `{% generation %}` and
                `{% endgeneration %}`; without such tags, what stands from where generation would start to the end of
                the turn, `<|im_end|>` included.
            processor_kwargs (`dict`, *optional*):
                Arguments of the processor's call. Those that it names may also stand among `kwargs`.
            kwargs:
                Variables of the template, such as `enable_thinking=False`, which opens the answer with an empty block.

        Raises:
            ValueError: where a message has an audio token in its text, an audio item has no source, or as in a call.
        """
        batched = bool(conversation) and isinstance(conversation[0], (list, tuple))
        conversations = [_as_dicts(messages) for messages in (conversation if batched else [conversation])]
        if add_generation_prompt and continue_final_message:
            raise ValueError(
                "`add_generation_prompt` opens a new message and `continue_final_message` none; pass one."
            )
        for messages in conversations:
            _check_messages(messages)
        call = {name: kwargs.pop(name) for name in _CALL_ARGUMENTS if name in kwargs}
        call.update(processor_kwargs or {})
        variables = {
            **self.tokenizer.special_tokens_map,
            **kwargs,
            "chat_template": self._chosen_template(chat_template),
        }
        tagged = _GENERATION_TAG.search(variables["chat_template"])
        prompts, spans = render_jinja_template(
            conversations,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            return_assistant_tokens_mask=return_assistant_tokens_mask and bool(tagged),
            **variables,
        )
        if return_assistant_tokens_mask and not tagged:
            end = self.tokenizer.eos_token
            spans = [_answer_spans(*pair, end, variables) for pair in zip(conversations, prompts)]
        if not tokenize:
            return prompts if batched else prompts[0]
        clips = [_audio_items(messages) for messages in conversations]
        for index, (prompt, row) in enumerate(zip(prompts, clips)):
            _check_spans(prompt, len(row), index)
        inputs = self._process(prompts, clips, spans if return_assistant_tokens_mask else None, **call)
        return inputs if return_dict else inputs["input_ids"]

    def _chosen_template(self, chat_template: Optional[str]) -> str:
        templates = self.chat_template if isinstance(self.chat_template, dict) else {"default": self.chat_template}
        if chat_template is not None:
            return templates.get(chat_template, chat_template)
        if "default" not in templates:
            raise ValueError(f"`chat_template` must name one of {sorted(templates)}: none of them is the default.")
        return templates["default"]

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        ours = set(inspect.signature(cls.__init__).parameters) - {"tokenizer"}
        kwargs = {
            name: value for name, value in kwargs.items() if name not in ours
        }  # none of the tokenizer's business
        return super()._get_arguments_from_pretrained(pretrained_model_name_or_path, *args, **kwargs)


# Arguments that `apply_chat_template` hands to the call; all others are variables of the template.
_CALL_ARGUMENTS = (
    "sampling_rate",
    "enable_time_marker",
    "padding",
    "padding_side",
    "pad_to_multiple_of",
    "max_length",
    "truncation",
    "add_special_tokens",
    "return_tensors",
    "device",
)


def as_prompt(text: str, clips: int, index: int = 0) -> str:
    """
    A whole prompt for a text and so many clips: the text itself where it has spans for them, else the default prompt
    around it.

    Raises:
        ValueError: where the text has spans for another number of clips, or audio tokens outside of a span.
    """
    if not isinstance(text, str):
        raise ValueError(f"text {index} is of type {type(text).__name__}; expected a string.")
    prompt = text if _SPAN.search(text) else default_prompt(text, clips)
    if prompt is not text and (stray := _STRAY.search(text)):
        raise ValueError(_stray_message(f"text {index}", stray.group()))
    _check_spans(prompt, clips, index)
    return prompt


def _check_spans(prompt: str, clips: int, index: int):
    if stray := _STRAY.search(_SPAN.sub("", prompt)):
        raise ValueError(_stray_message(f"text {index}", stray.group()))
    if (spans := count_clips(prompt)) != clips:
        raise ValueError(
            f"text {index} has {spans} placeholders {CLIP} for {clips} clips; write one for each clip, or none at all "
            "to have them put before the text."
        )


def _stray_message(where: str, token: str) -> str:
    return (
        f"{where} holds the audio token {token} outside of a placeholder {CLIP}; take it out, or pass whole placeholders "
        "in `text=` with a clip for each."
    )


def clips_of_texts(texts: list[str], audio: Any) -> list[list[AudioSource]]:
    """
    The clips of each text: see `audio` in [`MossAudioProcessor.__call__`].

    Raises:
        ValueError: where it is not clear which clip belongs to which text.
    """
    if audio is None:
        return [[] for _ in texts]
    if not isinstance(audio, (list, tuple)) or is_samples(audio):
        audio = [audio]
    if len(texts) == 1:
        audio = [clip for clip in audio if clip is not None]
        nested = len(audio) == 1 and isinstance(audio[0], (list, tuple)) and not is_samples(audio[0])
        return [list(audio[0] if nested else audio)]
    rows = [
        [] if row is None else list(row) if isinstance(row, (list, tuple)) and not is_samples(row) else [row]
        for row in audio
    ]
    spans = [count_clips(text) for text in texts]
    if len(rows) == len(texts) and all(not count or count == len(row) for count, row in zip(spans, rows)):
        return rows
    flat = not any(entry is None or isinstance(entry, (list, tuple)) and not is_samples(entry) for entry in audio)
    if flat and len(audio) == sum(spans):  # one list for the spans of all texts
        remaining = iter(audio)
        return [[next(remaining) for _ in range(count)] for count in spans]
    raise ValueError(
        f"`audio` has {len(audio)} entries for {len(texts)} texts with {spans} placeholders; pass a list with a clip, a "
        "list of clips or None for each text."
    )


def _as_dicts(messages: list[Any]) -> list[dict[str, Any]]:
    """Messages as dictionaries, and their items, too."""
    messages = [_as_dict(message) for message in messages]
    for index, message in enumerate(messages):
        if isinstance(message, Mapping) and isinstance(message.get("content"), (list, tuple)):
            messages[index] = {**message, "content": [_as_dict(part) for part in message["content"]]}
    return messages


def _as_dict(item: Any) -> Any:
    """A dataclass or a model of pydantic as a dictionary of what is not None; anything else as it is."""
    if callable(getattr(item, "model_dump", None)):
        return item.model_dump(exclude_none=True)
    if not dataclasses.is_dataclass(item):
        return item
    values = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    return {name: value for name, value in values.items() if value is not None}


def _audio_items(messages: list[dict[str, Any]]) -> list[AudioSource]:
    """The recordings of a conversation, in order."""
    sources = []
    for message in messages:
        for part in message["content"] if isinstance(message.get("content"), (list, tuple)) else ():
            if part.get("type") != "audio":
                continue
            found = [name for name in ("audio", "path", "url", "base64") if part.get(name) is not None]
            if len(found) != 1:
                raise ValueError(
                    f"an audio item has keys {sorted(part)}; it needs exactly one of `path`, `url`, `audio` or `base64`."
                )
            source = part[found[0]]
            sources.append(decode_base64(source) if found[0] == "base64" else source)
    return sources


def _check_messages(messages: list[dict[str, Any]]):
    """
    Refuses what the template would pass over in silence: a part that is neither text nor audio; and audio tokens in a
    text, which only audio items may make.
    """
    if not messages:
        raise ValueError("the conversation has no messages; pass at least one with `role` and `content`.")
    for index, message in enumerate(messages):
        content = message.get("content")
        parts = content if isinstance(content, (list, tuple)) else [{"type": "text", "text": content}]
        for part in parts:
            if not isinstance(part, Mapping) or part.get("type") not in ("text", "audio"):
                raise ValueError(
                    f"message {index} holds {part!r:.80}, which is neither text nor audio; expected "
                    '{"type": "text", "text": …} or {"type": "audio", "path": …}.'
                )
            if part["type"] == "text" and (stray := _STRAY.search(part.get("text") or "")):
                raise ValueError(
                    f"message {index} holds the audio token {stray.group()} in its text; take it out, and put sound in an "
                    '{"type": "audio", …} item.'
                )


def _answer_spans(
    messages: list[dict[str, Any]], prompt: str, end: str, variables: dict[str, Any]
) -> list[tuple[int, int]]:
    """
    Characters of a rendered conversation that are the assistant's: from where generation would start, to the end of the
    turn.

    Raises:
        ValueError: where the template does not open a turn as it opens an answer to be generated, or does not end it.
    """
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        (opened,), _ = render_jinja_template([messages[:index]], add_generation_prompt=True, **variables)
        stop = prompt.find(end, len(opened))
        if not prompt.startswith(opened) or stop < 0:
            raise ValueError(
                f"the chat template does not render message {index} as an answer that is generated is: after what "
                f"`add_generation_prompt=True` writes, and up to {end}. Mark answers in the template by "
                "{% generation %} and {% endgeneration %}."
            )
        spans.append((len(opened), stop + len(end)))
    return spans


def _positions_of_folder(folder: Union[str, os.PathLike], hub: dict[str, Any]) -> dict[str, int]:
    """The decoder's positions as config.json has them; nothing where there is none, as beside a bare tokenizer."""
    try:
        config, _ = MossAudioConfig.get_config_dict(folder, **hub)
    except (OSError, ValueError):
        return {}
    decoder = config.get("language_config") or {}
    if "max_position_embeddings" not in decoder:
        return {}
    return {"max_position_embeddings": decoder_positions(decoder)}


def _token_at(tokenizer: Any, token_id: int, name: str) -> str:
    """How the tokenizer writes the token at an id; where it has none there, `name` is added."""
    known = tokenizer.get_added_vocab()
    if known.get(name) == token_id:
        return name
    for token, index in known.items():
        if index == token_id:
            return token
    if name not in known and len(tokenizer) == token_id:
        tokenizer.add_tokens([AddedToken(name, special=True, normalized=False)], special_tokens=True)
        return name
    raise ValueError(
        f"the tokenizer has no special token at id {token_id} for {name}, and with its {len(tokenizer)} tokens none can "
        f"be added there{f' ({name} is at {known[name]})' if name in known else ''}: pass the ids of its audio tokens as "
        "`audio_token_id`, `audio_start_id` and `audio_end_id`."
    )


def _tokens_in_spans(offsets: list[list[tuple[int, int]]], spans: list[list[tuple[int, int]]]) -> list[list[int]]:
    """1 for the tokens that have a character in one of the row's spans; padding has none."""
    return [
        [int(any(start < high and low < end for low, high in row)) for start, end in tokens]
        for tokens, row in zip(offsets, spans)
    ]


def _stack(clips: list[torch.Tensor]) -> torch.Tensor:
    """Features `(mels, frames)` of clips as `(clips, mels, frames)`, zeros behind the ends."""
    if len(clips) == 1:
        return clips[0][None]
    longest = max(clip.shape[1] for clip in clips)
    batch = clips[0].new_zeros(len(clips), clips[0].shape[0], longest)
    for row, clip in zip(batch, clips):
        row[:, : clip.shape[1]] = clip
    return batch


MossAudioProcessor.register_for_auto_class()

__all__ = ["MossAudioProcessor", "load_audio", "log_mel", "split_reasoning"]
