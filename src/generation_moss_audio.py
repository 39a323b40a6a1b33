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
"""What happens token by token while the model answers: a budget for its thinking, how sure it was, segments as they close.

The budget keeps no state of its rows: what has happened is read from their tokens, so that beams may be reordered and
candidates be taken back.
"""

import queue
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Optional

import torch
from transformers import LogitsProcessor
from transformers.generation.streamers import BaseStreamer

from .transcripts_moss_audio import Segment, Transcript, TranscriptParser


TRANSITION = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now.\n"
    "</think>\n\n"
)
# The same and the tokens around it as the released tokenizer writes them.
RELEASED_THINKING_TOKEN_IDS = {
    "turn": 151644,
    "open": 151667,
    "close": 151668,
    "transition": [
        *(271, 82796, 279, 7199, 882, 553, 279, 1196, 11, 358, 614, 311, 2968, 279, 6291, 3118, 389, 279, 7274, 5961),
        *(1431, 624, 151668, 271),
    ],
}


def thinking_token_ids(tokenizer: Any) -> dict[str, Any]:
    """
    What [`ThinkingBudgetLogitsProcessor`] must know of a tokenizer: the ids of `<|im_start|>` ("turn"), `<think>`
    ("open") and `</think>` ("close"), and those of the text that ends the thinking ("transition").

    Raises:
        ValueError: where one of these is no token of it.
    """
    names = {"turn": "<|im_start|>", "open": "<think>", "close": "</think>"}
    vocabulary = tokenizer.get_vocab()
    for token in names.values():
        if token not in vocabulary:
            raise ValueError(
                f"the tokenizer has no token {token}, so that `thinking_budget` cannot be kept; leave it out."
            )
    ids = {name: vocabulary[token] for name, token in names.items()}
    return {**ids, "transition": tokenizer(TRANSITION, add_special_tokens=False)["input_ids"]}


class ThinkingBudgetLogitsProcessor(LogitsProcessor):
    r"""
    Ends a `<think>` block that has had its tokens: from then on the tokens of the transition are forced, one a step, and
    the answer follows. A row that has closed its block itself, or opened none, is left alone.

    Args:
        budget (`int`):
            Tokens that may be generated in a block; with 0 the transition follows `<think>` at once.
        token_ids (`dict`):
            See [`thinking_token_ids`].
        prompt_length (`int`):
            Tokens of the prompt, padding included, which are not counted. A block that the prompt has opened in its last
            turn is open from the first step on.
    """

    def __init__(self, budget: int, token_ids: dict[str, Any], prompt_length: int):
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
            raise ValueError(
                f"`thinking_budget` {budget!r} must be a number of tokens, 0 or more; None sets no limit."
            )
        self.budget = budget
        self.token_ids = token_ids
        self.prompt_length = prompt_length
        self._transition: Optional[torch.Tensor] = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        length = input_ids.shape[1]
        if not length:  # the prompt came as embeddings, and nothing has been generated yet
            return scores
        opened, closed, turn = (self._last(input_ids, self.token_ids[name]) for name in ("open", "close", "turn"))
        opened = opened.masked_fill(opened < turn, -1)  # in a question or an earlier answer
        spent = length - 1 - opened.clamp(min=self.prompt_length - 1)
        # Where in the transition each row is. It goes on behind `</think>`, which stands at a known place in it.
        step = spent - self.budget
        if self._transition is None or self._transition.device != input_ids.device:
            self._transition = torch.tensor(self.token_ids["transition"], device=input_ids.device)
        transition = self._transition
        by_force = closed - opened.clamp(min=self.prompt_length - 1) > self.budget
        forced = (opened >= 0) & (step >= 0) & (step < len(transition)) & ((closed < opened) | by_force)
        only = torch.full_like(scores, -torch.inf)
        only.scatter_(1, transition[step.clamp(0, len(transition) - 1)][:, None], 0.0)
        return torch.where(forced[:, None], only, scores)

    @staticmethod
    def _last(input_ids: torch.LongTensor, token: int) -> torch.LongTensor:
        """Where a token stands last in each row, -1 where it does not."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        return torch.where(input_ids == token, positions, -1).amax(dim=1)


class TokenLogprobs(LogitsProcessor):
    """
    Takes down the log-probability of every token that greedy decoding or sampling generates, before temperature and the
    like. It keeps the scores of one step only: `output_scores=True` keeps them all, gigabytes for a long transcript.
    """

    def __init__(self):
        self._last: Optional[torch.Tensor] = None
        self._chosen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self._last is not None:
            self._take(input_ids[:, -1])
        self._last = scores.float().log_softmax(dim=-1)
        return scores

    def _take(self, tokens: torch.LongTensor):
        self._chosen.append(self._last.gather(1, tokens[:, None].to(self._last.device)))

    def of(self, sequences: torch.LongTensor) -> torch.FloatTensor:
        """Log-probabilities `(rows, new tokens)` of what was generated, once it is; -inf or so for padding."""
        self._take(sequences[:, -1])
        self._last = None
        return torch.cat(self._chosen, dim=1)


def token_ends(ids: Sequence[int], decode: Any) -> list[int]:
    """
    How many characters of the text of `ids` there are after each token; a token that ends inside a character counts to
    where that begins.

    Args:
        ids: tokens.
        decode: from a list of tokens to their text, as `tokenizer.decode`.
    """
    ends, done, start = [], 0, 0
    for index in range(len(ids)):
        piece = decode(ids[start : index + 1])
        # Text is complete up to a token that does not end with a replacement character. A character has four bytes at most:
        # one that stays incomplete longer is none, and counts as it is.
        if not piece.endswith("\ufffd") or index - start >= 4:
            done, start = done + len(piece), index + 1
            piece = ""
        ends.append(done + len(piece.rstrip("\ufffd")))
    return ends


def span_logprobs(span: tuple[int, int], ends: Sequence[int], logprobs: Sequence[float]) -> list[float]:
    """
    The log-probabilities of the tokens that the characters `span` were made of, wholly or in part. A token that is a part
    of a character counts to it.

    Args:
        span: first character and the one behind the last.
        ends: see [`token_ends`].
        logprobs: one for each token.
    """
    (first, last), values, start = span, [], 0
    for end, value in zip(ends, logprobs):
        if start < last and (end > first or start >= first):
            values.append(value)
        start = end
    return values


def with_confidence(transcript: Transcript, ends: Sequence[int], logprobs: Sequence[float]) -> Transcript:
    """
    A transcript whose segments have `logprob_mean` and `logprob_min` of the tokens that their texts were made of.

    Args:
        transcript: as [`parse_transcript`] reads it from the text of the tokens.
        ends: of the tokens in that text; see [`token_ends`].
        logprobs: one for each token, as from `model.compute_transition_scores`.
    """
    segments = []
    for segment in transcript:
        values = span_logprobs(segment.span, ends, logprobs) if segment.span else []
        if values:
            segment = replace(segment, logprob_mean=sum(values) / len(values), logprob_min=min(values))
        segments.append(segment)
    return Transcript(segments, list(transcript.repairs))


class SegmentStreamer(BaseStreamer):
    r"""
    A streamer whose iteration gives the segments of a transcript as they close. `generate` runs in another thread, as with
    [`~transformers.TextIteratorStreamer`]; for one recording at a time.

    Args:
        tokenizer:
            The tokenizer, or the processor.
        timeout (`float`, *optional*):
            Seconds to wait for the next segment; without end by default.

    ```python
    >>> inputs = processor.apply_transcription_request("recording.wav", timestamps="sentence")
    >>> streamer = SegmentStreamer(processor)
    >>> Thread(target=model.generate, kwargs={**inputs, "streamer": streamer}).start()
    >>> for segment in streamer:
    ...     print(segment.start, segment.end, segment.text)
    ```
    """

    def __init__(self, tokenizer: Any, timeout: Optional[float] = None):
        self._tokenizer = tokenizer
        self._parser = TranscriptParser()
        self._queue: queue.Queue = queue.Queue()
        self._timeout = timeout
        self._ids: list[int] = []
        self._prompt_is_next = True

    @property
    def transcript(self) -> Transcript:
        """All segments so far, and what had to be repaired."""
        return self._parser.transcript

    def put(self, value: torch.Tensor):
        """
        Takes the prompt, then token after token.

        Raises:
            ValueError: for a batch.
        """
        if value.ndim > 1 and value.shape[0] > 1:
            raise ValueError(f"a batch of {value.shape[0]} cannot be streamed; pass one recording at a time.")
        if self._prompt_is_next:
            self._prompt_is_next = False
            self._parser = TranscriptParser(reasoning_open=has_open_reasoning(self._tokenizer.decode(value.flatten())))
            return
        self._ids.extend(value.flatten().tolist())
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if not text.endswith("\ufffd") or len(self._ids) > 4:  # otherwise a character is not complete
            self._ids = []
            self._give(self._parser.feed(text))

    def end(self):
        """Gives what is still open, and ends the iteration."""
        if self._ids:
            self._give(self._parser.feed(self._tokenizer.decode(self._ids, skip_special_tokens=True)))
        self._give(self._parser.close())
        self._queue.put(None)

    def fail(self, error: BaseException):
        """Ends the iteration with an error of the thread that generates."""
        self._queue.put(error)

    def _give(self, segments: list[Segment]):
        for segment in segments:
            self._queue.put(segment)

    def __iter__(self) -> Iterator[Segment]:
        while (item := self._queue.get(timeout=self._timeout)) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item


def has_open_reasoning(prompt: str) -> bool:
    """Whether a prompt ends inside a `<think>` block, so that the answer begins with reasoning."""
    turn = prompt.rpartition("<|im_start|>")[2]
    return turn.rfind("<think>") > turn.rfind("</think>")


__all__ = ["SegmentStreamer", "ThinkingBudgetLogitsProcessor", "thinking_token_ids", "token_ends", "with_confidence"]
