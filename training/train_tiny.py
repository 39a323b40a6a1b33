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
"""Trains moss-audio-tiny from nothing, by the standard Trainer: `python -m moss_audio.training.train_tiny OUT`.

First the ear (encoder and adapter) alone, on what the generator knows about every 80 ms; then, with the ear as it is,
mergers and decoder on questions and answers about clips that are made as they are needed. Text alone comes first, then lists
of what is heard; heads that are no part of the checkpoint read from the decoder which event comes next. Interrupted, the training
goes on from its last checkpoint.
"""

import argparse
import json
import shutil
import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Callable, Optional, Union

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    AddedToken,
    EvalPrediction,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from moss_audio import MossAudioConfig, MossAudioModel, MossAudioProcessor, log_mel
from moss_audio.configuration_moss_audio import TOKENS_PER_SECOND, frames_to_tokens
from moss_audio.training import MossAudioDataCollator
from moss_audio.training.tiny_world import (
    LABELS,
    RATE,
    WORD_LISTS,
    WORDS,
    Clip,
    Event,
    Question,
    TinyWorld,
    Vocabulary,
    check_espeak,
    listed,
    listing,
    lookups,
    matching,
    messages,
    questions,
    reading,
    spliced,
    surveys,
    turns,
)


SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_bos|>", "<|audio_eos|>", "<|AUDIO|>")
PLAIN_TOKENS = ("<think>", "</think>")  # they survive `skip_special_tokens`, as in the released tokenizer
VOCABULARY = 704

SIZES = {
    "audio_config": {
        "d_model": 192,
        "encoder_layers": 6,
        "encoder_attention_heads": 6,
        "encoder_ffn_dim": 768,
        "downsample_hidden_size": 48,
        "initializer_range": 0.07,  # about 1 / √width, here and below: 0.02 is for models ten times as wide
        "deepstack_encoder_layer_indexes": [1, 3, 4],
        "dropout": 0.0,  # no clip is heard more than three times
        "attention_dropout": 0.0,
    },
    "language_config": {
        "hidden_size": 256,
        "intermediate_size": 672,
        "num_hidden_layers": 5,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "rope_theta": 1e6,  # so that more than half of a head's dimensions hardly turn in a conversation
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.06,
        "tie_word_embeddings": True,
    },
    "adapter_hidden_size": 256,
}


# ------------------------------------------------------------------------------------------- tokenizer, processor, model


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of whole words, trained on the questions and answers of a few hundred clips."""
    tokenizer = Tokenizer(models.BPE())
    # Words with the space before them, single digits, single marks: a marker and a timestamp are read digit by digit.
    pattern = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS) - len(PLAIN_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=[name for name in SPECIAL_TOKENS if name not in ("<|endoftext|>", "<|im_end|>")],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=SIZES["language_config"]["max_position_embeddings"],
    )
    fast.add_tokens([AddedToken(name, special=False, normalized=False) for name in PLAIN_TOKENS])
    return fast


def _texts(clips: int = 300) -> list[str]:
    world = TinyWorld("train", 0, SilentVocabulary())
    texts = [
        *["system\nYou are a helpful assistant.", "user\nassistant\n"] * clips,
        *LABELS * 50,
        *(f" {label}" for label in LABELS * 50),
    ]
    for index in range(clips):
        rng = world.generator(index, 1)
        for question in questions(world[index], rng):
            texts += [question.prompt, question.answer]
    return texts


class SilentVocabulary(Vocabulary):
    """Words of half a second of silence, where only the texts are wanted."""

    def __init__(self):
        super().__init__("train")

    def __call__(self, word: str, index: int) -> np.ndarray:
        return np.zeros(RATE // 2, dtype=np.float32)


def make_processor() -> MossAudioProcessor:
    """The processor around a new tokenizer."""
    tokenizer = make_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    return MossAudioProcessor(
        tokenizer,
        audio_token_id=ids("<|AUDIO|>"),
        audio_start_id=ids("<|audio_bos|>"),
        audio_end_id=ids("<|audio_eos|>"),
        max_position_embeddings=SIZES["language_config"]["max_position_embeddings"],
    )


def make_model(processor: MossAudioProcessor, taps: Optional[int] = None) -> MossAudioModel:
    """A new model whose tokens are the processor's; `taps` is how many mergers it has (all by default)."""
    tokenizer = processor.tokenizer
    language = {
        **SIZES["language_config"],
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = MossAudioConfig(
        **{**SIZES, "language_config": language},
        deepstack_num_inject_layers=taps,
        audio_token_id=processor.audio_token_id,
        audio_start_id=processor.audio_start_id,
        audio_end_id=processor.audio_end_id,
    )
    model = MossAudioModel(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


# ------------------------------------------------------------------------------------------------ the ear by itself


PARTS = ("audio_encoder", "audio_adapter")  # of the model that are the ear
OFFSETS = 8  # hundredths of a second in a token
HEARD = (1 + len(LABELS), 10, 10, 10, OFFSETS, 10, OFFSETS)  # how many values each column of `frame_labels` has
TIMES_SHARES = (0.1, 0.4)  # what each column of times counts beside the label: while the words are learned, and then
IGNORED = -100
MOST_MASKED = 16  # mel bins of a band that is left out, of two
MOST_JUMP = 40  # positions, where training skips some
LAYER_SHARE = 0.3  # of the tokens, about: what a layer adds when the decoder begins to learn
LOOK_SHARE = 0.7  # and the same for heads that know what to look for
MOST_DISTANCE = 500  # positions between two tokens of a conversation, or so
PRACTICE = 8  # of so many conversations one is without sound
SPLICED = 0.2  # of the clips in conversations: the share that is put together from two
SO_FAR = (16, 16, 1 + len(LABELS))  # how many values each column of `so_far` has
SO_FAR_LAYERS = (2, 2, 3)  # after how many of the decoder's layers each of them is to be known
SO_FAR_SHARE = 0.3  # what the columns count beside the answers
HEADS = "so_far.pt"  # where a run keeps what reads these columns, for one that goes on from its checkpoint
MERGER_PACE = 0.1  # learning rate of the mergers, of the decoder's
MERGER_SHARE = 0.1  # of what the adapter hands on, about: what the mergers add when the decoder begins to learn


def tokens_within(event: Event, centres: np.ndarray) -> np.ndarray:
    """Which tokens, by the seconds of their `centres`, are of an event."""
    return np.flatnonzero((centres >= event.start - 0.02) & (centres < event.end + 0.02))


def frame_labels(events: list[Any], tokens: int, window_seconds: float = 4.0) -> np.ndarray:
    """
    What is to be heard in each 80 ms of a clip. The seconds are not: the markers tell them.

    Returns:
        int64 `(tokens, 7)`, -100 where a column has nothing to say: the label (0 is none); the tenths of the event's start
        and of its end, where they lie in this window; and where an event starts or ends in the token itself, the
        hundredths of that time and how many of them it is into the token, for start and end.
    """
    labels = np.full((tokens, len(HEARD)), IGNORED, dtype=np.int64)
    labels[:, 0] = 0
    centres = (np.arange(tokens) + 0.5) / TOKENS_PER_SECOND
    for event in events:
        inside = tokens_within(event, centres)
        labels[inside, 0] = 1 + LABELS.index(event.label)
        labels[inside, 1:3] = IGNORED  # the times of an event that it covers
        for token in inside:
            begin = centres[token] // window_seconds * window_seconds
            for column, time in ((1, event.start), (2, event.end)):
                tenths = round((time - begin) * 100) // 10
                if 0 <= tenths < 10 * window_seconds:
                    labels[token, column] = tenths % 10
        for column, time in ((3, event.start), (5, event.end)):
            hundredths = round(time * 100)
            token, offset = divmod(hundredths, OFFSETS)
            if token < tokens:
                labels[token, column : column + 2] = hundredths % 10, offset
    return labels


def so_far(events: list[Event], tokens: int) -> np.ndarray:
    """
    What has happened by each 80 ms of a clip in which there is an event, and by the clip's end: what a decoder has to know to go
    from one event to the next where labels come up again.

    Returns:
        int64 `(tokens + 1, 3)`, -100 where a column has nothing to say: how many events have begun; how many words, where one is
        heard; and the label of the event before (0 is none).
    """
    labels = np.full((tokens + 1, len(SO_FAR)), IGNORED, dtype=np.int64)
    centres = (np.arange(tokens) + 0.5) / TOKENS_PER_SECOND
    words, before = 0, 0
    for index, event in enumerate(events):
        inside = tokens_within(event, centres)
        words += event.label in WORDS
        labels[inside] = index + 1, words if event.label in WORDS else IGNORED, before
        before = 1 + LABELS.index(event.label)
    labels[tokens] = len(events), words, before
    return labels


def mean_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The cross entropy of `logits` (tokens, values) over the `targets` (tokens,) that are not ignored; 0 where all are."""
    return nn.functional.cross_entropy(logits, targets, reduction="sum") / (targets != IGNORED).sum().clamp(min=1)


class Heads(nn.Module):
    """Linear heads that read the labels of `frame_labels` from what the adapter hands on; thrown away afterwards."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, sum(HEARD))
        self.times_share = TIMES_SHARES[0]

    def forward(self, states: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`states` (tokens, width) and `labels` (tokens, 7): the loss, and the logits of what is heard."""
        parts = self.linear(states.to(self.linear.weight.dtype)).float().split(HEARD, dim=-1)
        label = labels[:, 0]
        # Tokens without an event count for themselves: they are most of all, and easy.
        silent, heard = (label.masked_fill((label == 0) != there, IGNORED) for there in (True, False))
        losses = [
            mean_loss(part, target) for part, target in zip((parts[0], *parts), (silent, heard, *labels.unbind(1)[1:]))
        ]
        return losses[0] + losses[1] + self.times_share * sum(losses[2:]), parts[0]


class Ear(nn.Module):
    """The part of a model that listens, encoder and adapter, with heads."""

    def __init__(self, model: MossAudioModel):
        super().__init__()
        self.audio_encoder, self.audio_adapter = model.audio_encoder, model.audio_adapter
        self.heads = Heads(model.config.language_config.hidden_size)

    def forward(self, audio_data: torch.Tensor, audio_data_seqlens: torch.Tensor, labels: torch.Tensor, **kwargs):
        """`labels` are those of all tokens of all clips, `(tokens, 7)`; returns the loss and the logits."""
        states = self.audio_encoder(audio_data, audio_data_seqlens).last_hidden_state
        loss, logits = self.heads(self.audio_adapter(states), labels)
        return {"loss": loss, "logits": logits}


class TimesLater(TrainerCallback):
    """Lets times count for more after `steps`; from the start, they would keep the words from being learned."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_begin(self, args, state, control, model, **kwargs):
        """Sets the share of the times for the step that begins."""
        model.heads.times_share = TIMES_SHARES[state.global_step >= self.steps]


class Clips(Dataset):
    """
    Clips of a split as features with their frame labels, made when asked for. Those of training lack some bands of
    frequencies. (After Park et al., SpecAugment, 2019.)
    """

    def __init__(self, world: TinyWorld, count: int, first: int = 0):
        self.world, self.count, self.first = world, count, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip = self.world[self.first + index]
        features = log_mel(torch.from_numpy(clip.waveform))
        labels = torch.from_numpy(frame_labels(clip.events, frames_to_tokens(features.shape[1])))
        if self.world.split == "train":
            random = self.world.generator(self.first + index, 2)
            for width in random.integers(0, MOST_MASKED + 1, 2):
                low = random.integers(0, len(features) - width + 1)
                features[low : low + width] = features.mean()
        return {"features": features, "labels": labels}


def join_clips(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch for [`Ear`]."""
    lengths = [row["features"].shape[1] for row in rows]
    features = torch.zeros(len(rows), rows[0]["features"].shape[0], max(lengths))
    for row, target, length in zip(rows, features, lengths):
        target[:, :length] = row["features"]
    labels = torch.cat([row["labels"] for row in rows])
    return {"audio_data": features, "audio_data_seqlens": torch.tensor(lengths), "labels": labels}


# ------------------------------------------------------------------------------------------------------------ everything


class Conversations(Dataset):
    """
    Conversations about clips of a split in the chat layout, made when asked for. The first `texts` of them are without sound,
    to learn to look things up and to read; the next `lists` only list what is heard, in order or in none. With `practice`, every
    such-and-such conversation after the first `texts` is without sound, too, as what is not needed is forgotten. With `uneven`,
    each has what [`UnevenCollator`] takes. Some clips of training are spliced.
    """

    def __init__(
        self,
        world: TinyWorld,
        count: int,
        first: int = 0,
        most_turns: int = 6,
        texts: int = 0,
        lists: int = 0,
        practice: int = 0,
        uneven: bool = False,
    ):
        self.world, self.count, self.first, self.most_turns = world, count, first, most_turns
        self.texts, self.lists, self.practice, self.uneven = texts, lists, practice, uneven

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        silent = self._silent(index)
        clip = self._clip(index, self.world.outline if silent else self.world.__getitem__)
        asked = self._turns(index, clip)
        row = {"messages": messages(None if silent else {"audio": clip.waveform}, asked)}
        if self.uneven:
            row["jumps"] = self.first + index
            if not silent:
                told = [(question.answer, listed(question, clip), question.task) for question in asked]
                row["told"] = clip.events, told
        return row

    def _clip(self, index: int, make: Callable[[int], Clip]) -> Clip:
        clip, random = make(self.first + index), self.world.generator(self.first + index, 3)
        if self._silent(index) or self.world.split != "train" or random.random() >= SPLICED:
            return clip
        return spliced(clip, make(self.first + self.count + index), random)

    def _silent(self, index: int) -> bool:
        return index < self.texts or bool(self.practice) and index % self.practice == 0

    def _turns(self, index: int, clip: Clip) -> list[Question]:
        random = self.world.generator(self.first + index, 1)
        if self._silent(index):
            kinds = (lookups,) if index < self.texts // 3 else (lookups, matching, partial(reading, clip))
            return kinds[random.integers(len(kinds))](random)
        if index < self.texts + self.lists:
            return random.random() < 0.5 and surveys(clip, random) or [listing(clip, random)]
        return turns(clip, random, self.most_turns)

    def lengths(self, index: int, tokenizer: PreTrainedTokenizerFast) -> tuple[float, int]:
        """Length of a clip in seconds, and of its conversation in tokens, all but a constant; without making the clip."""
        clip = self._clip(index, self.world.outline)
        asked = self._turns(index, clip)
        text = tokenizer([part for question in asked for part in question[1:]])["input_ids"]
        heard = 0 if self._silent(index) else round(clip.seconds * TOKENS_PER_SECOND)
        return clip.seconds, heard + sum(map(len, text)) + 10 * len(asked)


class Exam(Dataset):
    """Every question that a data file has about the clips of a split, each by itself, in the chat layout; made when asked for."""

    def __init__(self, world: TinyWorld, clips: int):
        self.world = world
        outlines = ((index, world.outline(index)) for index in range(clips))
        self.asked = [
            (index, question) for index, clip in outlines for question in questions(clip, world.generator(index, 1))
        ]
        self._clip: tuple[int, Optional[Clip]] = (-1, None)  # the last one, about which the next question is, too

    def __len__(self) -> int:
        return len(self.asked)

    def __getitem__(self, row: int) -> dict[str, Any]:
        index, question = self.asked[row]
        if self._clip[0] != index:
            self._clip = index, self.world[index]
        return {"messages": messages({"audio": self._clip[1].waveform}, [question])}

    def mark(self, prediction: EvalPrediction) -> dict[str, float]:
        """The share of answers to each kind of question whose tokens would all be right, each after the right ones."""
        said, right = prediction.predictions[:, :-1], prediction.label_ids[:, 1:]
        passed = ((said == right) | (right == IGNORED)).all(1)
        tasks = np.array([question.task for _, question in self.asked])
        return {f"right_{task}": float(passed[tasks == task].mean()) for task in sorted(set(tasks))}


def likeliest(outputs: Union[torch.Tensor, tuple[torch.Tensor, ...]], labels: torch.Tensor) -> torch.Tensor:
    """The tokens that the logits among a model's outputs say: all that [`Exam.mark`] needs of them."""
    return (outputs[0] if isinstance(outputs, tuple) else outputs).argmax(-1)


class UnevenCollator(MossAudioDataCollator):
    """
    Adds what training has beside the answers.

    Positions jump ahead at the time markers between a clip's tokens, by chance and up to `MOST_JUMP`, in samples with a seed for
    it under `jumps`. In clips as short as these a decoder would tell the time by how far it is to the start, and not learn to
    read the markers. (After Ruoss et al., Randomized Positional Encodings Boost Length Generalization of Transformers, 2023.)

    A sample's `told`, the clip's events and for each answer its text, where its events have been told (see
    [`~moss_audio.training.tiny_world.listed`]) and its task, becomes the labels of [`SoFar`].
    """

    def __init__(self, processor: MossAudioProcessor):
        super().__init__(processor, extra_keys=("jumps", "told"))

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The batch of `samples`, with `position_ids` (rows, tokens), and `so_far` (rows, tokens, 3) where something is told."""
        batch = super().__call__(samples)
        extras = batch.pop("extras")
        audio = batch["input_ids"] == self.processor.audio_token_id
        # A marker follows an audio token, and audio tokens follow it.
        markers = ~audio[:, 1:] & audio[:, :-1] & (audio.flip(1).cumsum(1).flip(1)[:, 1:] > 0)
        jumps = torch.zeros_like(batch["input_ids"])
        for row, seed in enumerate(extras["jumps"]):
            if seed is not None:
                random = torch.Generator().manual_seed(seed)
                shares = torch.rand(1, generator=random) * torch.rand(markers.shape[1], generator=random)
                jumps[row, 1:] = markers[row] * shares * (MOST_JUMP + 1)
        batch["position_ids"] = ((batch["attention_mask"] + jumps).cumsum(1) - 1).clamp(min=0)
        if any(told is not None for told in extras["told"]):
            batch["so_far"] = torch.full((*batch["input_ids"].shape, len(SO_FAR)), IGNORED)
            for row, told in enumerate(extras["told"]):
                if told is not None:
                    self._tell(batch["so_far"][row], batch["input_ids"][row], batch["labels"][row] != IGNORED, *told)
        return batch

    def _tell(
        self, target: torch.Tensor, ids: torch.Tensor, answered: torch.Tensor, events: list[Any], answers: list[tuple]
    ):
        """Fills in `target` (tokens, 3): what was heard so far, and which event is told next in answers that list events."""
        heard = (ids == self.processor.audio_token_id).nonzero().flatten()
        heard = torch.cat([heard, (ids == self.processor.audio_end_id).nonzero().flatten()])
        target[heard] = torch.from_numpy(so_far(events, len(heard) - 1))
        begins = (answered & ~nn.functional.pad(answered, (1, 0))[:-1]).nonzero().flatten().tolist()
        for begin, (answer, ends, task) in zip(begins, answers, strict=True):
            if ends is None:
                continue
            spans = self.processor.tokenizer(answer, return_offsets_mapping=True)["offset_mapping"]
            column = int(task in WORD_LISTS)  # words, and events otherwise
            # What is said at a token is the next one; after the last of an answer comes the end of the turn.
            next_ones = [sum(end <= start for end in ends) + 1 for start, _ in [*spans, (len(answer), 0)]]
            target[begin - 1 : begin + len(spans), column] = torch.tensor(next_ones)


class SoFar(nn.Module):
    """
    Linear heads that read what was heard and told so far from states of the decoder, each of them both by the same weights, so that
    the one can be found by the other; no part of a checkpoint, but kept for a run that goes on from it. (After Lee et al.,
    Deeply-Supervised Nets, 2015.)
    """

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.ModuleList([nn.Linear(width, size) for size in SO_FAR])

    def forward(self, states: tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
        """`states` (rows, tokens, width) of all layers and `labels` (rows, tokens, 3): the loss."""
        losses = []
        for head, layer, target in zip(self.linear, SO_FAR_LAYERS, labels.unbind(-1)):
            there = target != IGNORED
            read = nn.functional.rms_norm(states[layer][there].float(), states[layer].shape[-1:])
            losses.append(mean_loss(head(read).float(), target[there]))
        return sum(losses)


class TinyTrainer(Trainer):
    """
    The standard Trainer for [`Conversations`]. Those of like length share a batch, though they are not yet made. Those without
    sound come first, then those that list what is heard, and of these `short_steps` batches about the shortest clips: what a
    decoder must learn before it can answer is where to listen next.
    """

    def __init__(self, *args, short_steps: int = 0, **kwargs):
        super().__init__(*args, **kwargs)
        self.short_steps = short_steps
        self.known: list[torch.Tensor] = []  # the loss of each step since the last log, 0 where there was none

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        """
        The standard one, with a lower learning rate for the mergers: their weights are small, as what they read is large and
        multiplied with itself, and steps as long as the others' would soon make them louder than all else (see
        [`quieten_mergers`]).
        """
        optimizer = super().create_optimizer(*args, **kwargs)
        mergers = set(self.model.deepstack_audio_merger_list.parameters())
        for group in list(optimizer.param_groups):
            slow = [weight for weight in group["params"] if weight in mergers]
            if slow:
                group["params"] = [weight for weight in group["params"] if weight not in mergers]
                optimizer.add_param_group({**group, "params": slow, "lr": MERGER_PACE * group["lr"]})
        return optimizer

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        """The standard one, and in training that of [`SoFar`]."""
        labels = inputs.pop("so_far", None)
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        inputs["output_hidden_states"] = labels is not None
        loss, outputs = super().compute_loss(model, inputs, True, **kwargs)
        known = loss.new_zeros(()) if labels is None else self.model.so_far(outputs.hidden_states, labels)
        self.known.append(known.detach())
        loss = loss + SO_FAR_SHARE * known / self.args.gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs):
        """The standard one, with the loss of [`SoFar`] apart from that of the answers."""
        if "loss" in logs and self.known:
            logs["so_far_loss"] = float(torch.stack(self.known).mean())
            logs["loss"] -= SO_FAR_SHARE * logs["so_far_loss"]
            self.known.clear()
        logs.pop("train_loss", None)  # the mean of all steps, of both
        super().log(logs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Optional[Dataset] = None) -> list[int]:
        tokenizer, size = self.data_collator.processor.tokenizer, self.args.train_batch_size
        data = self.train_dataset
        seconds, lengths = zip(*(data.lengths(index, tokenizer) for index in range(len(data))))
        lists = range(data.texts, data.texts + data.lists)
        short = set(sorted(lists, key=seconds.__getitem__)[: self.short_steps * size])
        later = [index for index in lists if index not in short]
        random, order = np.random.default_rng(self.args.seed), []
        easy = data.texts // 3
        for part in (range(easy), range(easy, data.texts), sorted(short), later, range(lists.stop, len(data))):
            shuffled = random.permutation(np.asarray(part, dtype=np.int64))
            # Of eight batches at a time the longest go into one. The batches are shuffled again: from one length to the
            # next the tasks differ, too.
            groups = [
                sorted(shuffled[start : start + 8 * size], key=lengths.__getitem__)
                for start in range(0, len(part), 8 * size)
            ]
            batches = [group[start : start + size] for group in groups for start in range(0, len(group), size)]
            order += [int(index) for place in random.permutation(len(batches)) for index in batches[place]]
        return order


@dataclass
class Settings:
    """What a run is made of; written beside its results."""

    encoder_steps: int = 11_200
    word_steps: int = 2640  # the first of them, in which times count for little
    steps: int = 2900
    batch_size: int = 32
    learning_rate: float = 1.5e-3
    encoder_learning_rate: float = 1e-3  # while it learns alone
    text_steps: int = 180  # with which the second stage begins: text alone
    list_steps: int = 500  # the next, which only list what is heard
    short_steps: int = 100  # the first of them, on the shortest clips
    warmup_steps: int = 100
    weight_decay: float = 0.01
    clips: int = 100_000  # different ones for the encoder alone
    dev_clips: int = 128  # that the ear is evaluated with
    exam_clips: int = 64  # that the decoder is, with about nine questions each
    seed: int = 0
    workers: int = 1
    taps: Optional[int] = None
    time_markers: bool = True
    after: Optional[str] = None  # folder of a checkpoint whose decoder learns on
    halfway: bool = False  # whether mergers and decoder are in the end the mean of what they were and have become
    compile: bool = False  # the decoder's layers, by torch.compile: a quarter less time; it wants a C++ compiler
    trainer: dict[str, Any] = field(default_factory=dict)


def training_arguments(settings: Settings, folder: Path, steps: int, learning_rate: float) -> TrainingArguments:
    """The arguments that both stages share."""
    options = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": min(settings.warmup_steps, steps // 4),
        "weight_decay": settings.weight_decay,
        "adam_beta2": 0.98,
        "max_grad_norm": 1.0,
        "bf16": True,
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 20,
        "eval_strategy": "steps",
        "eval_steps": 200,
        "save_steps": 200,
        "save_total_limit": 2,
        "remove_unused_columns": False,
        "dataloader_num_workers": settings.workers,
        "dataloader_persistent_workers": settings.workers > 0,
        "dataloader_prefetch_factor": 6 if settings.workers else None,
        "label_names": ["labels"],
        "report_to": "none",
        "seed": settings.seed,
        **settings.trainer,
    }
    return TrainingArguments(**options)


def frame_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of the 80 ms whose label the encoder's heads name: of those in an event, and of the others."""
    labels = prediction.label_ids[:, 0]
    right = prediction.predictions.argmax(-1) == labels
    return {"event_accuracy": float(right[labels > 0].mean()), "silence_accuracy": float(right[labels == 0].mean())}


def train_encoder(
    settings: Settings, folder: Path, world: TinyWorld, dev: TinyWorld, checkpoint: Optional[Path] = None
) -> dict[str, dict[str, torch.Tensor]]:
    """
    Teaches an ear what each 80 ms holds; returns the weights of its parts, and keeps them in `folder/encoder.pt`. The ear is
    new, or that of a checkpoint: then it stays as it is, and only the heads are taught.
    """
    kept = folder / "encoder.pt"
    if kept.exists():
        return torch.load(kept, map_location="cpu", weights_only=True)
    set_seed(settings.seed)
    ear = Ear(make_model(make_processor()))
    if checkpoint is not None:
        _take_ear(ear, checkpoint)
    trainer = Trainer(
        model=ear,
        args=training_arguments(settings, folder / "encoder", settings.encoder_steps, settings.encoder_learning_rate),
        train_dataset=Clips(world, settings.clips),
        eval_dataset=Clips(dev, settings.dev_clips),
        data_collator=join_clips,
        compute_metrics=frame_accuracy,
        callbacks=[TimesLater(settings.word_steps)],
    )
    run(trainer)
    weights = {name: part.state_dict() for name, part in ear.to("cpu").named_children()}
    _save_whole(weights, kept)
    return weights


def _save_whole(weights: dict[str, Any], path: Path):
    """Writes weights so that the file is there when it is complete, and not before."""
    unfinished = path.with_name(f"{path.name}.partial")
    torch.save(weights, unfinished)
    unfinished.replace(path)


def _take_ear(ear: Ear, checkpoint: Path):
    """Gives an ear the weights of a checkpoint's, for good."""
    taken = MossAudioModel.from_pretrained(checkpoint, dtype=torch.float32)
    _fill(ear, {name: taken.get_submodule(name).state_dict() for name in PARTS}, f"in {checkpoint}")
    for name in PARTS:
        ear.get_submodule(name).requires_grad_(False)


def _fill(module: nn.Module, weights: dict[str, dict[str, torch.Tensor]], where: str):
    """Gives encoder and adapter of `module` other weights, which are to be found `where`."""
    for name in PARTS:
        try:
            module.get_submodule(name).load_state_dict(weights[name])
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"the `{name}` {where} has other shapes than that of moss-audio-tiny; take one of this command."
            ) from error


@torch.no_grad()
def embed_what_is_heard(model: MossAudioModel, tokenizer: PreTrainedTokenizerFast, heads: torch.Tensor):
    """
    Puts the tokens of labels and digits where the heads (weights of [`Heads`]) look for them, so that what is read and what
    is heard are alike to a decoder that has learned nothing yet.
    """
    table = model.get_input_embeddings().weight
    parts = heads.split(HEARD)
    tenths_and_hundredths = (part - part.mean(0) for part, size in zip(parts, HEARD) if size == 10)
    digits = sum(nn.functional.normalize(part) for part in tenths_and_hundredths)
    texts = [(label, f" {label}") if label in WORDS else (f" {label}",) for label in LABELS]
    texts += [(str(digit),) for digit in range(10)]
    for letter in "ABCDEFGH":  # with a space before it and without
        table[tokenizer(f" {letter}")["input_ids"][-1]] = table[tokenizer(letter)["input_ids"][-1]]
    size = table.norm(dim=-1).mean()
    for names, direction in zip(texts, nn.functional.normalize(torch.cat([parts[0][1:], digits]))):
        for text in names:
            token = tokenizer(text)["input_ids"][-1]
            table[token] = 0.9 * size * direction + 0.4 * table[token]


@torch.no_grad()
def speak_up(model: MossAudioModel):
    """
    Makes the tokens of a new decoder as loud as what the adapter hands on (an RMS of 1), its logits as before, and what its
    layers add quieter than both. With tied embeddings of ordinary size the first layer alone is ten times as loud as the tokens,
    and which token stood where is lost to all layers but it.
    """
    language = model.language_model
    size = model.get_input_embeddings().weight.pow(2).mean().sqrt()
    model.get_input_embeddings().weight /= size
    language.norm.weight *= size
    for layer in language.layers:
        layer.self_attn.o_proj.weight *= LAYER_SHARE
        layer.mlp.down_proj.weight *= LAYER_SHARE


@torch.no_grad()
def hand_on_what_is_attended_to(model: MossAudioModel):
    """
    Lets each attention of a new decoder begin by handing on unchanged what it attends to: the value and output projections
    are each other's inverse. (After Trockman and Kolter, Mimetic Initialization of Self-Attention Layers, 2023.) What a
    head looks for can be learned once finding it helps, and here it does from the start.
    """
    for layer in model.language_model.layers:
        values, output = layer.self_attn.v_proj.weight, layer.self_attn.o_proj.weight
        nn.init.orthogonal_(values)
        output.copy_(values.T)


@torch.no_grad()
def look_back(model: MossAudioModel, tokenizer: PreTrainedTokenizerFast):
    """
    Lets some heads of a new decoder begin with the two steps of an induction head: in the first layer three look one, two and
    three tokens back, whatever stands there; in the others two look for the label that they stand on, wherever else it is read
    or heard. Answering from options needs both at once, and neither is learned while the other is missing. (After Olsson et
    al., In-context Learning and Induction Heads, 2022.)
    """
    config = model.config.language_config
    table, size = model.get_input_embeddings().weight, config.head_dim
    half = size // 2
    turns = SIZES["language_config"]["rope_theta"] ** (-torch.arange(half) / half)  # radians from a token to the next

    # Queries and keys that are the same for all tokens: how they agree depends on their distance alone, and most on its fast part.
    tokens = nn.functional.normalize(table) * table.shape[1] ** 0.5
    ridge = 1e-3 * len(tokens) * torch.eye(len(tokens.T))
    common = torch.linalg.solve(tokens.T @ tokens + ridge, tokens.sum(0))
    shares = torch.zeros(half)
    shares[: half // 5] = 0.4 / (half // 5 - 1)
    shares[0] = 0.6
    first = model.language_model.layers[0].self_attn
    for head, distance in enumerate((1, 2, 3)):
        rows = slice(head * size, (head + 1) * size)
        query = torch.cat([shares.sqrt(), torch.zeros(half)])
        key = torch.cat([shares.sqrt() * (distance * turns).cos(), shares.sqrt() * (distance * turns).sin()])
        first.q_proj.weight[rows], first.k_proj.weight[rows] = torch.outer(query, common), torch.outer(key, common)
        first.o_proj.weight[:, rows] *= LOOK_SHARE / LAYER_SHARE

    # Queries and keys that tell labels apart, where rotation does not reach.
    labels = table[[tokenizer(f" {label}")["input_ids"][-1] for label in LABELS]]
    directions = torch.linalg.svd(labels - labels.mean(0), full_matrices=False)[2][: len(LABELS) - 1]
    slow = [place for place in reversed(range(half)) if turns[place] * MOST_DISTANCE < 1]
    places = torch.tensor([*slow, *(place + half for place in slow)])[: len(directions)]
    for layer in model.language_model.layers[1:]:
        for head in range(2):
            rows = slice(head * size, (head + 1) * size)
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight[rows] *= 0.02
                projection.weight[head * size + places] += directions[: len(places)]
            layer.self_attn.o_proj.weight[:, rows] *= LOOK_SHARE / LAYER_SHARE


@torch.no_grad()
def quieten_mergers(model: MossAudioModel, features: torch.Tensor):
    """
    Scales new mergers by what they hear in `features` (clips, num_mel_bins, frames) so that they begin by adding little.

    The encoder's intermediate states are not normalised as its last one is, and a merger multiplies them with each other:
    an ear that was taught without them leaves sums in which what the adapter hands on, and all that the decoder's own layers
    could add, is lost.
    """
    lengths = torch.full((len(features),), features.shape[-1], device=features.device)
    taps = model.audio_encoder(features, lengths).deepstack_hidden_states
    for merger, tap in zip(model.deepstack_audio_merger_list, taps):
        size = tap.float().pow(2).mean().sqrt()
        merger.gate_proj.weight /= size
        merger.up_proj.weight /= size
        merger.down_proj.weight *= MERGER_SHARE


def go_on(
    settings: Settings,
    processor: MossAudioProcessor,
    dev: TinyWorld,
    taught: Optional[dict[str, dict[str, torch.Tensor]]] = None,
) -> MossAudioModel:
    """The model of the checkpoint after which a run comes; where an ear was `taught`, with that one."""
    model = MossAudioModel.from_pretrained(settings.after, dtype=torch.float32)
    if taught is not None:
        _fill(model, taught, "that was taught")
    return model


def begin_model(
    settings: Settings, processor: MossAudioProcessor, dev: TinyWorld, taught: dict[str, dict[str, torch.Tensor]]
) -> MossAudioModel:
    """A new model with the ear that was taught, whose decoder begins with what the ear's heads know."""
    model = make_model(processor, settings.taps)
    _fill(model, taught, "that was taught")
    embed_what_is_heard(model, processor.tokenizer, taught["heads"]["linear.weight"])
    hand_on_what_is_attended_to(model)
    speak_up(model)
    look_back(model, processor.tokenizer)
    clips = [log_mel(torch.from_numpy(dev[index].waveform[: 2 * RATE])) for index in range(16)]
    quieten_mergers(model, torch.stack(clips))
    return model


def train_decoder(
    settings: Settings,
    folder: Path,
    world: TinyWorld,
    dev: TinyWorld,
    begin: Callable[[Settings, MossAudioProcessor, TinyWorld], MossAudioModel],
    heads: Optional[dict[str, torch.Tensor]] = None,
) -> Path:
    """
    Trains mergers and decoder of the model that `begin` makes on conversations; returns the folder that holds the bfloat16
    checkpoint. [`SoFar`] is new, or has the weights `heads`.
    """
    set_seed(settings.seed)
    processor = _kept_processor(folder, settings.after)
    processor.enable_time_marker = settings.time_markers
    model = begin(settings, processor, dev)
    for name in PARTS:
        # A decoder that cannot listen yet takes sound for a disturbance, and would wear out what has learned to hear.
        model.get_submodule(name).requires_grad_(False)
    model.so_far = SoFar(model.config.language_config.hidden_size)
    if heads is not None:
        model.so_far.load_state_dict(heads)
    if settings.compile:
        # Each layer has its own graphs, with clips and without, for training and evaluation; beyond the limit, which counts those
        # of all layers together, nothing is compiled.
        torch._dynamo.config.recompile_limit = 64
        for layer in model.language_model.layers:
            layer.compile(dynamic=True)
    count, texts, lists = (
        steps * settings.batch_size for steps in (settings.steps, settings.text_steps, settings.list_steps)
    )
    exam = Exam(dev, settings.exam_clips)
    trainer = TinyTrainer(
        model=model,
        args=training_arguments(settings, folder / "model", settings.steps, settings.learning_rate),
        train_dataset=Conversations(
            world, count, first=settings.clips, texts=texts, lists=lists, practice=PRACTICE, uneven=True
        ),
        eval_dataset=exam,
        data_collator=UnevenCollator(processor),
        compute_metrics=exam.mark,
        preprocess_logits_for_metrics=likeliest,
        short_steps=settings.short_steps,
    )
    # New heads have nothing to go back to.
    learning = ("language_model", "deepstack_audio_merger_list", *(["so_far"] if heads is not None else []))
    before = {
        name: weight.detach().clone()
        for name, weight in model.named_parameters()
        if settings.halfway and name.startswith(learning)
    }
    run(trainer)
    _go_half_back(model, before)
    _save_whole(model.so_far.state_dict(), folder / HEADS)
    del model.so_far
    save_without_code(model.to(torch.bfloat16), processor, folder / "moss-audio-tiny")
    return folder / "moss-audio-tiny"


@torch.no_grad()
def _go_half_back(model: MossAudioModel, before: dict[str, torch.Tensor]):
    """
    Makes weights the mean of what they were `before` and are now: what was learned last without all of what was forgotten for it.
    (After Wortsman et al., Robust Fine-tuning of Zero-Shot Models, 2022.)
    """
    for name, weight in model.named_parameters():
        if name in before:
            weight.lerp_(before[name].to(weight.device), 0.5)


def _kept_processor(folder: Path, after: Optional[str]) -> MossAudioProcessor:
    """
    The processor of a run: that of the checkpoint `after` which it comes, or one made once, as the order of a tokenizer's
    merges may differ from one release to the next.
    """
    kept, unfinished = folder / "processor", folder / "processor.partial"
    if not kept.exists():
        shutil.rmtree(unfinished, ignore_errors=True)
        processor = MossAudioProcessor.from_pretrained(after) if after else make_processor()
        processor.save_pretrained(unfinished)
        unfinished.replace(kept)
    return MossAudioProcessor.from_pretrained(kept)


def save_without_code(model: MossAudioModel, processor: MossAudioProcessor, folder: Path):
    """
    Writes a checkpoint as the released ones are: weights, configurations and tokenizer, and no code, which is that of
    the installed package. `moss-audio convert` makes a folder of it that needs none.
    """
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for path in folder.glob("*.py"):
        path.unlink()
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        path = folder / name
        values = json.loads(path.read_text(encoding="utf-8"))
        for part in ("audio_config", "language_config"):  # `model.to` has changed the dtype of the whole alone
            values.get(part, {}).update(dtype=values.get("dtype"))
        kept = {key: value for key, value in values.items() if key not in ("auto_map", "custom_pipelines")}
        path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def run(trainer: Trainer):
    """Trains from the last checkpoint, if there is one, and keeps the log as numbers."""
    folder = Path(trainer.args.output_dir)
    for path in folder.glob("checkpoint-*"):
        if not (path / "trainer_state.json").exists():  # it is written last
            shutil.rmtree(path)
    last = get_last_checkpoint(folder) if folder.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    (folder / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1), encoding="utf-8")


def teach(settings: Settings, folder: Path, checkpoint: Optional[Path] = None, words: Optional[Path] = None) -> Path:
    """
    The first stage alone: teaches an ear, or goes on where that was interrupted.

    Args:
        folder: where settings, logs and the result go.
        checkpoint: whose encoder and adapter are taken, so that only heads are taught to read from them; by default both are
            taught now.
        words: see [`train`].

    Returns:
        The file with the weights of encoder, adapter and heads.

    Raises:
        ValueError: where `folder` holds a run with other settings, numbers of steps do not fit each other, or `checkpoint` has
            other shapes.
        FileNotFoundError: where espeak-ng or `checkpoint` is missing.
    """
    _check(settings, checkpoint)
    world, dev = _worlds(settings, folder, checkpoint, words)
    train_encoder(settings, folder, world, dev, checkpoint)
    return folder / "encoder.pt"


def train(settings: Settings, folder: Path, encoder: Optional[Path] = None, words: Optional[Path] = None) -> Path:
    """
    Trains a model, or goes on where training was interrupted.

    Args:
        folder: where settings, logs, checkpoints and the result go.
        encoder: an `encoder.pt` of another run, or the folder of a checkpoint whose encoder and adapter are taken, so that the
            first stage only teaches heads to read from them; by default encoder and adapter are taught now, or where
            `settings.after` is given, those of that checkpoint are kept.
        words: the file that keeps the spoken words, made where it is missing; by default one in `folder`.

    Returns:
        The folder of the checkpoint, in bfloat16 and without code.

    Raises:
        ValueError: where `folder` holds a run with other settings, settings do not fit each other, or `encoder` was taught
            something else or has other shapes.
        FileNotFoundError: where espeak-ng, `encoder` or `settings.after` is missing.
    """
    _check(settings, encoder)
    taught = _read_ear(encoder) if encoder and encoder.is_file() else None
    heads = _read_heads(settings.after) if settings.after else None
    world, dev = _worlds(settings, folder, encoder, words)
    if settings.after:
        return train_decoder(settings, folder, world, dev, partial(go_on, taught=taught), heads)
    taught = taught or train_encoder(settings, folder, world, dev, encoder)
    return train_decoder(settings, folder, world, dev, partial(begin_model, taught=taught))


def _check(settings: Settings, encoder: Optional[Path]):
    """Raises where settings do not fit each other, or what they need is missing."""
    if not 0 <= settings.word_steps <= settings.encoder_steps or settings.encoder_steps < 1:
        raise ValueError(
            f"word_steps {settings.word_steps} must not be more than encoder_steps {settings.encoder_steps}, of which they "
            "are the first, and these at least 1."
        )
    text_steps, list_steps = settings.text_steps, settings.list_steps
    if not (text_steps >= 0 and 0 <= settings.short_steps <= list_steps <= settings.steps - text_steps):
        raise ValueError(
            f"short_steps {settings.short_steps} ≤ list_steps {list_steps} ≤ steps {settings.steps} - text_steps {text_steps} "
            "must hold: texts come first, then short lists, then lists, then all."
        )
    if settings.after and settings.taps is not None:
        raise ValueError(
            f"after {settings.after!r} does not go with taps ({settings.taps}; --no-deepstack): a checkpoint has its own mergers."
        )
    if encoder is not None and not (encoder.is_file() or (encoder / "config.json").is_file()):
        raise FileNotFoundError(f"encoder {encoder} is neither an `encoder.pt` nor the folder of a checkpoint.")
    if settings.halfway and not settings.after:
        raise ValueError("halfway (--halfway) needs after (--after): a new decoder has nothing to go back to.")
    if settings.after and encoder is not None and not encoder.is_file():
        raise ValueError(
            f"after {settings.after!r}, encoder {encoder} must be an `encoder.pt`: from the folder of a checkpoint only a new "
            "decoder begins."
        )
    if settings.after and not Path(settings.after, "config.json").is_file():
        raise FileNotFoundError(f"after {settings.after!r} is not the folder of a checkpoint.")
    check_espeak()


def _worlds(
    settings: Settings, folder: Path, encoder: Optional[Path], words: Optional[Path]
) -> tuple[TinyWorld, TinyWorld]:
    """The worlds of training and evaluation; notes in `folder` what its run is made of."""
    written = json.dumps({**asdict(settings), "encoder": encoder and str(encoder)}, indent=2)
    kept = folder / "settings.json"
    if kept.exists() and kept.read_text(encoding="utf-8") != written:
        raise ValueError(f"{folder} holds a run with other settings (see {kept}); choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    kept.write_text(written, encoding="utf-8")
    vocabulary = Vocabulary("train")
    vocabulary.speak_all(words or folder / "vocabulary.npz")
    return TinyWorld("train", settings.seed, vocabulary), TinyWorld("dev", settings.seed)


def _read_ear(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What [`train_encoder`] has kept in a file."""
    try:
        taught = torch.load(path, map_location="cpu", weights_only=True)
        heads = taught["heads"]["linear.weight"]
    except Exception as error:  # whatever a file of another kind leads to
        raise ValueError(
            f"encoder {path} is no `encoder.pt` of this command; give one, or a checkpoint's folder."
        ) from error
    if len(heads) != sum(HEARD):
        raise ValueError(f"{path} was taught other labels, by another version; teach one anew.")
    return taught


def _read_heads(after: str) -> Optional[dict[str, torch.Tensor]]:
    """The weights of [`SoFar`] that the run which made the checkpoint `after` has kept beside it, or None where there are none."""
    kept = Path(after).resolve().parent / HEADS
    if not kept.exists():
        return None
    try:
        heads = torch.load(kept, map_location="cpu", weights_only=True)
        SoFar(SIZES["language_config"]["hidden_size"]).load_state_dict(heads)
    except Exception as error:  # whatever a file of another kind leads to
        raise ValueError(f"{kept} has no heads of this command; remove it, and new ones are taught.") from error
    return heads


def import_pyplot() -> Any:
    """The module matplotlib.pyplot, for pictures in files; or an ImportError that says how to get it."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("curves are drawn by matplotlib: `pip install matplotlib`.") from error
    return pyplot


def draw_curves(folder: Path, path: Path):
    """
    Draws what the ear names wrongly, and the decoder's loss and right answers, by step, as a picture; nothing of an ear taught
    elsewhere.
    """
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 3.8), layout="constrained")
    paths = [folder / stage / "log.json" for stage in ("encoder", "model")]
    logs = [json.loads(path.read_text(encoding="utf-8")) if path.exists() else [] for path in paths]
    # The loss of the ear would have a step where times begin to count for more.
    for key, name in (("eval_event_accuracy", "of an event"), ("eval_silence_accuracy", "without one")):
        points = [(entry["step"], 1 - entry[key]) for entry in logs[0] if key in entry]
        axes[0].plot(*(zip(*points) if points else ([], [])), label=name)
    for key, name in (("loss", "training"), ("eval_loss", "held-out")):
        axes[1].plot(*zip(*((entry["step"], entry[key]) for entry in logs[1] if key in entry)), label=name)
    for key in sorted({key for entry in logs[1] for key in entry if key.startswith("eval_right_")}):
        if not key.endswith("-thinking"):  # few questions, of long answers
            points = [(entry["step"], entry[key]) for entry in logs[1] if key in entry]
            axes[2].plot(*zip(*points), label=key.removeprefix("eval_right_"))
    titles = (
        "the ear: held-out 80 ms named wrongly",
        "the decoder: loss on answers",
        "the decoder: held-out answers right to the token",
    )
    for axis, title, label, scale in zip(axes, titles, ("share", "loss", "share"), ("log", "log", "linear")):
        axis.set(title=title, xlabel="step", ylabel=label, yscale=scale)
    for axis in axes[:2]:
        axis.legend(fontsize="small")
    if axes[2].lines:  # a run shorter than an evaluation has none
        axes[2].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


ENCODER_HELP = (
    "the `encoder.pt` of another run; or the folder of a checkpoint, whose ear is taken, so that --encoder-steps teach only "
    "what reads from it (400 are enough, with --word-steps 0)"
)


def main(arguments: Optional[list[str]] = None):
    """The command `python -m moss_audio.training.train_tiny`."""
    parser = argparse.ArgumentParser(prog="python -m moss_audio.training.train_tiny", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="OUT", help="where checkpoints, log and result go")
    numbers = (
        "encoder_steps",
        "word_steps",
        "steps",
        "text_steps",
        "list_steps",
        "short_steps",
        "batch_size",
        "seed",
        "workers",
    )
    for name in numbers:
        default = getattr(Settings, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--learning-rate", type=float, default=Settings.learning_rate)
    parser.add_argument(
        "--after",
        metavar="CHECKPOINT",
        help="folder of a checkpoint of this command, whose decoder learns on, with the ear of --encoder if that is an "
        "`encoder.pt`; choose another seed",
    )
    parser.add_argument(
        "--halfway",
        action="store_true",
        help="end with the mean of the decoder's weights at the beginning and at the end; with --after",
    )
    parser.add_argument("--encoder", type=Path, metavar="PATH", help=ENCODER_HELP)
    parser.add_argument("--compile", action="store_true", help="compile the decoder's layers; needs a C++ compiler")
    parser.add_argument("--no-deepstack", action="store_true", help="a model without mergers")
    parser.add_argument("--no-time-markers", action="store_true", help="prompts without time markers")
    options = parser.parse_args(arguments)
    settings = Settings(
        **{name: getattr(options, name) for name in numbers},
        learning_rate=options.learning_rate,
        compile=options.compile,
        taps=0 if options.no_deepstack else None,
        time_markers=not options.no_time_markers,
        after=options.after,
        halfway=options.halfway,
    )
    try:
        import_pyplot()  # it would be missed after hours
        print(train(settings, options.folder, options.encoder))
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        sys.exit(str(error))
    draw_curves(options.folder, options.folder / "curves.png")


if __name__ == "__main__":
    main()
