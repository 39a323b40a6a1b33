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
"""`pipeline("audio-text-to-text")`: recordings and questions or tasks in, answers out, one by one or in batches.

Each input is loaded and turned into features by itself (in a DataLoader worker if asked for), a long recording piece by
piece; a batch of pieces, of one recording or several, is joined right before the model runs, because clips are not rows and
cannot be padded as Transformers' collator would. What the answers to the pieces say is read and put together at the end.
"""

import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Optional, Union

import torch
from torch.utils.data import Dataset, IterableDataset
from transformers.generation import StoppingCriteria, StoppingCriteriaList
from transformers.pipelines.base import ChunkPipeline
from transformers.utils import logging

from .audio_moss_audio import is_samples, load_audio, stream_audio
from .configuration_moss_audio import decoder_positions
from .generation_moss_audio import (
    SegmentStreamer,
    TokenLogprobs,
    has_open_reasoning,
    span_logprobs,
    token_ends,
    with_confidence,
)
from .long_moss_audio import CHUNK_SECONDS, Piece, clock, cut_audio, stitch_transcripts, stitched_text, within_piece
from .tasks_moss_audio import chosen_letter, task_messages, task_prompt
from .transcripts_moss_audio import Segment, Transcript, parse_json, parse_transcript, split_reasoning


logger = logging.get_logger(__name__)

DEFAULT_TEXT = "Describe this audio."
# Tasks about what happens when, whose answers to the pieces of a long recording make sense one after another.
CUT_BY_DEFAULT = ("transcribe", "caption")
# Tokens for an answer where nobody has said how many, and besides for each second of a transcript: fast speech, with the
# times of its sentences or of its words.
DEFAULT_TOKENS = 1024
TOKENS_PER_SECOND = {None: 10, "sentence": 10, "word": 40}


class Conversation:
    """The messages of one chat: a class of its own, because a list would be taken for a batch."""

    def __init__(self, messages: list[dict[str, Any]]):
        self.messages = list(messages)

    @property
    def is_open(self) -> bool:
        """Whether the last message is an assistant's, which the answer then continues."""
        return self.messages[-1]["role"] == "assistant"

    @property
    def is_thinking(self) -> bool:
        """Whether that message ends inside a `<think>` block, so that the answer begins with reasoning."""
        content = self.messages[-1]["content"]
        parts = [content] if isinstance(content, str) else [part.get("text") or "" for part in content]
        return self.is_open and has_open_reasoning("".join(parts))


@dataclass
class Answer:
    """What the model said about a piece of a recording."""

    text: str  # without the reasoning
    reasoning: Optional[str]
    raw: str  # with special tokens
    cut_off: bool  # before the model had ended it
    start: Optional[float]  # of the piece, in seconds; None where the input is not one recording
    end: Optional[float]
    transcript: Transcript
    logprobs: Optional[list[float]]  # of the tokens of `text`


class _Rows(Dataset):
    """
    A dataset that ends where its length says. Transformers iterates over what it cuts into chunks, and only an `IndexError`
    ends that, which many datasets do not raise.
    """

    def __init__(self, dataset: Dataset):
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        if index >= len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._dataset[index]


class AudioTextToTextPipeline(ChunkPipeline):
    r"""
    Answers questions about recordings, and does tasks: transcripts, captions and more.

    ```python
    >>> from transformers import pipeline
    >>> import moss_audio

    >>> pipe = pipeline("audio-text-to-text", model="OpenMOSS-Team/MOSS-Audio-4B-Instruct")
    >>> pipe("recording.wav", text="What is said?")
    {'generated_text': '…', 'reasoning': None}
    >>> pipe(["a.wav", "b.mp3"], text="Describe this audio.", batch_size=2)
    [{'generated_text': '…', 'reasoning': None}, {'generated_text': '…', 'reasoning': None}]
    >>> pipe("meeting.mp3", task="transcribe", return_timestamps="sentence")["segments"]
    [{'start': 0.0, 'end': 2.01, 'text': '…', 'speaker': None, 'span': [6, 17]}, …]
    ```
    """

    _load_processor = True
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False
    _pipeline_calls_generate = True

    def _sanitize_parameters(
        self,
        text: Optional[str] = None,
        task: Optional[str] = None,
        return_timestamps: Union[bool, str, None] = None,
        speakers: Optional[bool] = None,
        keywords: Union[str, Sequence[str], None] = None,
        language: Optional[str] = None,
        options: Optional[Sequence[str]] = None,
        chunk_length_s: Optional[float] = None,
        sampling_rate: Optional[int] = None,
        enable_time_marker: Optional[bool] = None,
        enable_thinking: Optional[bool] = None,
        continue_final_message: Optional[bool] = None,
        return_full_text: Optional[bool] = None,
        return_raw_text: Optional[bool] = None,
        generate_kwargs: Optional[dict[str, Any]] = None,
        **generation_parameters,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        twice = sorted(set(generate_kwargs or {}) & set(generation_parameters))
        if twice:
            raise ValueError(f"{twice} stand both in `generate_kwargs` and beside it; pass each once.")
        if task is None and (return_timestamps or speakers or keywords or language):
            task = "transcribe"  # there is nothing else that these go with
        elif task is None and options:
            task = "choice"
        preprocess = {
            "text": text,
            "task": task,
            "timestamps": {True: "sentence", False: None}.get(return_timestamps, return_timestamps),
            "speakers": speakers,
            "keywords": keywords,
            "language": language,
            "options": options,
            "chunk_length_s": chunk_length_s,
            "sampling_rate": sampling_rate,
            "enable_time_marker": enable_time_marker,
            "enable_thinking": enable_thinking,
            "continue_final_message": continue_final_message,
        }
        postprocess = {
            "task": task,
            "options": options,
            "return_full_text": return_full_text,
            "return_raw_text": return_raw_text,
        }
        forward = {**(generate_kwargs or {}), **generation_parameters}
        if task == "transcribe":
            forward["tokens_per_second"] = TOKENS_PER_SECOND.get(preprocess["timestamps"])
        return (
            {name: value for name, value in preprocess.items() if value is not None},
            forward,
            {name: value for name, value in postprocess.items() if value is not None},
        )

    def __call__(self, audio: Any = None, text: Any = None, **kwargs) -> Union[dict, list, Iterator]:
        r"""
        Args:
            audio (*optional*):
                A recording: a path, URL, bytes, file object, array, tensor, or `{"array", "sampling_rate"}`; or
                `{"audio": …, "text": …}`, where `audio` may be a list of clips for one question; or the messages of a
                chat. A list, generator or dataset of these is a batch.
            text (`str` or `list[str]`, *optional*, defaults to `"Describe this audio."`):
                The question, one for all recordings or a list with one for each. Without `audio`, a question about no
                recording, or the messages of a chat.
            task (`str`, *optional*):
                "transcribe", "caption", "attributes" (the voice, as JSON), "question", "choice" or "summarize": asks in the
                released words where there are such. `text` is then the question of "question" and "choice", and a
                wording of one's own for the others. Where one of the next four is given it is "transcribe", with `options`
                "choice".
            return_timestamps (`bool` or `str`, *optional*):
                Times in a transcript: "sentence" (or True), or "word".
            speakers (`bool`, *optional*):
                Whether to label the sentences of a transcript with speakers; they have times then, too.
            keywords (`str` or `list[str]`, *optional*):
                Names and terms that may occur in a transcript.
            language (`str`, *optional*):
                ISO 639-1 code or English name of the language of a transcript.
            options (`list[str]`, *optional*):
                What there is to choose from in the task "choice".
            chunk_length_s (`float`, *optional*):
                Seconds: a longer recording is cut at quiet places, and the pieces are answered as if they were several
                recordings. 600 for transcripts and captions; no other task is cut unless this is given. 0 never cuts.
            batch_size (`int`, *optional*, defaults to 1):
                How many inputs of a list, generator or dataset, and pieces of long ones, the model answers at once.
            num_workers (`int`, *optional*, defaults to 0):
                1 loads recordings in another process, ahead of the model.
            sampling_rate (`int`, *optional*):
                Samples per second of arrays and tensors, 16000 by default.
            enable_time_marker (`bool`, *optional*):
                Overrides the processor's setting.
            enable_thinking (`bool`, *optional*):
                False opens the answer with an empty `<think>` block.
            continue_final_message (`bool`, *optional*):
                Whether the answer continues a chat's last message; by default where that is an assistant's.
            return_full_text (`bool`, *optional*, defaults to `False`):
                Whether `generated_text` is the question and the answer, or for a chat all messages with the answer's.
            return_raw_text (`bool`, *optional*, defaults to `False`):
                Whether to add `raw_text`: what was generated, with the `<think>` block and special tokens.
            thinking_budget (`int`, *optional*):
                Tokens of thinking after which the answer is asked for; see [`ThinkingBudgetLogitsProcessor`].
            output_scores (`bool`, *optional*, defaults to `False`):
                Whether to add how sure the model was: `logprob_mean` and `logprob_min`, of the answer and of each segment,
                are the mean and the lowest log-probability of their tokens.
            max_new_tokens, num_return_sequences, do_sample, streamer, … (*optional*):
                Go to [`~transformers.GenerationMixin.generate`], as does a dict `generate_kwargs`.

        Returns:
            For one input a dict, for a list a list, for a generator or dataset an iterator of dicts with
            `generated_text` (`str`) and `reasoning` (`str`, or None where there is no `<think>` block). With
            `num_return_sequences` above 1, a list of such dicts for each input. With a `task` they also have `duration`
            (seconds), `cut_off` (whether the answer, or that to a piece, reached `max_new_tokens` before its end), and:

            - `segments` and `repairs` of a transcript: what [`parse_transcript`] reads, as dicts, `start` and `end` in
              seconds from the beginning of the recording. Where the recording was cut, `generated_text` is the transcript
              of the whole; `span` is missing then.
            - `segments` of a caption: one for each piece, with its bounds. Where the recording was cut, and for other
              tasks cut on demand, `generated_text` has the answers to the pieces under the times where they begin.
            - `attributes`: the JSON of that task as a dict, None where there is none. `choice`: the letter, or None. Both
              are lists, with one for each piece, where the recording was cut.

        Raises:
            ValueError: where an input is no sound, texts and recordings are not of one number, or arguments do not go
                together.
        """
        if audio is None and text is None:
            raise ValueError("Pass a recording, a text, or the messages of a chat.")
        if audio is None:
            if isinstance(text, str):
                audio = {"text": text}
            elif _is_conversation(text) or all(_is_conversation(chat) for chat in text):
                audio = text
            else:
                audio = [{"text": question} for question in text]
            text = None
        if _is_conversation(audio) and text is not None:
            raise ValueError("`text` does not go with a chat; write the question into its messages.")
        if _is_conversation(audio):
            return super().__call__(Conversation(audio), **kwargs)
        if isinstance(audio, (list, tuple)) and not audio:
            return []
        if isinstance(audio, (list, tuple)):
            audio = [_pair(item, text, index, len(audio)) for index, item in enumerate(audio)]
            return super().__call__(audio, **kwargs)
        if text is not None and not isinstance(text, str):
            raise ValueError(
                f"`text` has {len(text)} questions for one recording; pass a string, or a list of recordings."
            )
        if isinstance(audio, Dataset) and not isinstance(audio, IterableDataset):
            audio = _Rows(audio)
        if isinstance(audio, Iterator) and not isinstance(audio, types.GeneratorType) and not hasattr(audio, "read"):
            audio = (item for item in audio)  # Transformers streams generators only
        if isinstance(
            audio, types.GeneratorType
        ):  # version 5 of Transformers makes a class of its own of chats in one
            audio = (Conversation(item) if _is_conversation(item) else item for item in audio)
        return super().__call__(audio, text=text, **kwargs)

    def preprocess(
        self,
        inputs: Any,
        text: Optional[str] = None,
        task: Optional[str] = None,
        chunk_length_s: Optional[float] = None,
        enable_thinking: Optional[bool] = None,
        continue_final_message: Optional[bool] = None,
        sampling_rate: Optional[int] = None,
        enable_time_marker: Optional[bool] = None,
        **request,
    ) -> Iterator[dict[str, Any]]:
        processor_kwargs = {"sampling_rate": sampling_rate, "enable_time_marker": enable_time_marker}
        processor_kwargs = {name: value for name, value in processor_kwargs.items() if value is not None}
        template_kwargs = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        if isinstance(inputs, Mapping) and "messages" in inputs:
            inputs = Conversation(inputs["messages"])
        elif _is_conversation(inputs):
            inputs = Conversation(inputs)
        if isinstance(inputs, Conversation):
            if task is not None or chunk_length_s:
                raise ValueError("`task` and `chunk_length_s` do not go with a chat; pass the recording itself.")
            features = self._read(inputs, continue_final_message, template_kwargs, processor_kwargs)
            yield _model_inputs(inputs, features)
            return
        audio, question = _audio_and_text(inputs, text)
        if task is None:
            prompt = DEFAULT_TEXT if question is None else question
        else:
            prompt = task_prompt(task, question, **request)
        seconds = (CHUNK_SECONDS if task in CUT_BY_DEFAULT else 0) if chunk_length_s is None else chunk_length_s
        if isinstance(audio, (list, tuple)) and len(audio) == 1 and not is_samples(audio):
            audio = audio[0]
        if audio is None or isinstance(audio, (list, tuple)) and not is_samples(audio):
            if chunk_length_s:
                raise ValueError("`chunk_length_s` cuts one recording; leave it out for several clips or none.")
            pieces = [(audio, None)]
        elif task is None and not seconds:
            pieces = [(audio, None)]
        else:
            processor_kwargs.pop("sampling_rate", None)
            pieces = ((piece.samples, piece) for piece in self._pieces(audio, sampling_rate, seconds))
        for clips, piece in pieces:
            if template_kwargs:
                conversation = Conversation(task_messages(prompt, clips))
                features = self._read(conversation, None, template_kwargs, processor_kwargs)
            else:
                features = self.processor(text=prompt, audio=clips, **processor_kwargs)
            yield _model_inputs(prompt, features, piece)

    def _pieces(self, audio: Any, sampling_rate: Optional[int], seconds: float) -> Iterator[Piece]:
        """One recording in pieces of at most so many seconds, or with 0 as a whole."""
        rate = self.processor.sampling_rate
        if seconds:
            yield from cut_audio(stream_audio(audio, sampling_rate, rate), rate, seconds)
        else:
            samples = load_audio(audio, sampling_rate, rate)
            yield Piece(0.0, samples.shape[0] / rate, samples, True)

    def _read(
        self,
        conversation: Conversation,
        resume: Optional[bool],
        template_kwargs: dict[str, Any],
        processor_kwargs: dict[str, Any],
    ) -> Mapping[str, torch.Tensor]:
        resume = conversation.is_open if resume is None else resume
        return self.processor.apply_chat_template(
            conversation.messages,
            tokenize=True,
            return_dict=True,
            add_generation_prompt=not resume,
            continue_final_message=resume,
            processor_kwargs=processor_kwargs,
            **template_kwargs,
        )

    def _forward(
        self,
        model_inputs: dict[str, Any],
        output_scores: Optional[bool] = None,
        tokens_per_second: Optional[int] = None,
        **generate_kwargs,
    ) -> dict[str, Any]:
        alone = not isinstance(model_inputs["features"], list)  # it has not gone through the collator
        if alone:
            model_inputs = {name: [value] for name, value in model_inputs.items()}
        batch = self.processor.pad(model_inputs.pop("features")).to(self.device)
        generate_kwargs = self._generate_arguments(generate_kwargs)
        if self._setting(generate_kwargs, "thinking_budget") is not None:
            generate_kwargs.setdefault("thinking_token_ids", self.processor.thinking_token_ids)
        if tokens_per_second and self._is_limit_open(generate_kwargs):
            seconds = max((end or 0) - (start or 0) for start, end in zip(model_inputs["start"], model_inputs["end"]))
            left = decoder_positions(self.model.config.language_config) - batch["input_ids"].shape[1]
            generate_kwargs["max_new_tokens"] = max(1, min(DEFAULT_TOKENS + int(tokens_per_second * seconds), left))
        ids, logprobs = self._generate(batch, generate_kwargs, bool(output_scores))
        rows = len(model_inputs["prompt"])
        new = ids[:, batch["input_ids"].shape[1] :]
        outputs = {
            **model_inputs,
            "ids": list(new.view(rows, -1, new.shape[1])),
            "logprobs": None if logprobs is None else list(logprobs.view(rows, -1, logprobs.shape[1])),
            "cut_off": list(self._cut_off(new, generate_kwargs).view(rows, -1)),
        }
        return {name: value[0] if alone and value else value for name, value in outputs.items()}

    def _generate_arguments(self, generate_kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of `generate`, with what was said when the pipeline was made."""
        if hasattr(self, "_prepare_generate_kwargs"):  # version 5 of Transformers
            generate_kwargs = self._prepare_generate_kwargs(generate_kwargs, return_dict_in_generate=False)
        else:
            generate_kwargs = {"generation_config": self.generation_config, **generate_kwargs}
            generate_kwargs["return_dict_in_generate"] = False
        if getattr(self, "assistant_model", None) is not None:
            generate_kwargs.setdefault("assistant_model", self.assistant_model)
        return generate_kwargs

    def _is_limit_open(self, generate_kwargs: dict[str, Any]) -> bool:
        """Whether neither a call nor a configuration says how long an answer may be."""
        if generate_kwargs.get("max_new_tokens") is not None:
            return False
        if self._setting(generate_kwargs, "max_length") not in (None, 20):  # the default of version 4
            return False
        return self._setting(generate_kwargs, "max_new_tokens") in (None, DEFAULT_TOKENS)

    def _setting(self, generate_kwargs: dict[str, Any], name: str) -> Any:
        """A parameter of generation: as given, or as the model's configuration has it."""
        configs = (generate_kwargs.get("generation_config"), self.model.generation_config)
        given = [generate_kwargs.get(name), *(getattr(config, name, None) for config in configs)]
        return next((value for value in given if value is not None), None)

    def _generate(
        self, batch: Mapping[str, torch.Tensor], generate_kwargs: dict[str, Any], output_scores: bool
    ) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
        """Sequences `(rows, prompt and answer)`, and on request the log-probabilities `(rows, answer)` of their tokens."""
        if not output_scores:
            return self.model.generate(**batch, **generate_kwargs), None
        by_steps = ("assistant_model", "prompt_lookup_num_tokens")
        if (self._setting(generate_kwargs, "num_beams") or 1) == 1 and not any(
            self._setting(generate_kwargs, name) for name in by_steps
        ):
            scores = TokenLogprobs()
            processors = [*(generate_kwargs.pop("logits_processor", None) or ()), scores]
            ids = self.model.generate(**batch, **generate_kwargs, logits_processor=processors)
            return ids, scores.of(ids)
        generate_kwargs = {**generate_kwargs, "return_dict_in_generate": True, "output_scores": True}
        output = self.model.generate(**batch, **generate_kwargs)
        beams = getattr(output, "beam_indices", None)
        logprobs = self.model.compute_transition_scores(
            output.sequences, output.scores, beams, normalize_logits=beams is None
        )
        return output.sequences, logprobs

    def _cut_off(self, new: torch.Tensor, generate_kwargs: dict[str, Any]) -> torch.Tensor:
        """Which answers `(rows, tokens)` the model has not ended itself."""
        ends = self._setting(generate_kwargs, "eos_token_id")
        if ends is None or self._setting(generate_kwargs, "stop_strings"):
            return torch.zeros(new.shape[0], dtype=torch.bool)
        return ~torch.isin(new.cpu(), torch.as_tensor(ends)).any(dim=1)

    def postprocess(
        self,
        model_outputs: list[dict[str, Any]],
        task: Optional[str] = None,
        options: Optional[Sequence[str]] = None,
        return_full_text: bool = False,
        return_raw_text: bool = False,
    ) -> Union[dict[str, Any], list[dict[str, Any]]]:
        prompt = model_outputs[0]["prompt"]
        results = []
        for sequence in range(model_outputs[0]["ids"].flatten(0, -2).shape[0]):
            answers = [self._answer(output, sequence, task) for output in model_outputs]
            result = {"generated_text": _joined(answers, task), "reasoning": _joined_reasoning(answers)}
            if return_full_text:
                result["generated_text"] = _full_text(prompt, result["generated_text"])
            if return_raw_text:
                result["raw_text"] = "".join(answer.raw for answer in answers)
            result.update(_task_result(answers, task, options))
            results.append(result)
        if task is not None and any(result["cut_off"] for result in results):
            logger.warning(
                "An answer was cut off before its end (`cut_off` in the result); raise `max_new_tokens`, or take a smaller "
                "`chunk_length_s`."
            )
        return results[0] if len(results) == 1 else results

    def _answer(self, output: dict[str, Any], sequence: int, task: Optional[str]) -> Answer:
        """What was said about one piece, in one of the sequences asked for."""

        def decode(ids: Sequence[int]) -> str:
            return self.processor.decode(ids, skip_special_tokens=True)

        prompt, ids = output["prompt"], output["ids"].flatten(0, -2)[sequence]
        text = decode(ids)
        reasoning, answer = split_reasoning(text)
        if reasoning is None and isinstance(prompt, Conversation) and prompt.is_thinking:
            reasoning, answer = text.strip(), ""  # cut off before the block has closed
        elif reasoning is None and isinstance(prompt, Conversation) and prompt.is_open:
            answer = text  # it goes on in the middle of a sentence: its spaces count
        transcript = parse_transcript(answer) if task == "transcribe" else Transcript()
        logprobs, offset = None, text.rfind(answer)
        if output["logprobs"] is not None and offset >= 0:
            ends = token_ends(ids.tolist(), decode)
            # From the token on in which the answer begins; those of the reasoning do not count.
            first = sum(end <= offset and start < offset for start, end in zip([0, *ends], ends))
            ends = [end - offset for end in ends[first:]]
            logprobs = output["logprobs"].flatten(0, -2)[sequence].tolist()[first:]
            transcript = with_confidence(transcript, ends, logprobs)
            logprobs = span_logprobs((0, len(answer)), ends, logprobs)
        return Answer(
            text=answer,
            reasoning=reasoning,
            raw=self.processor.decode(ids[ids != self.processor.tokenizer.pad_token_id], skip_special_tokens=False),
            cut_off=bool(output["cut_off"].flatten()[sequence]),
            start=output["start"],
            end=output["end"],
            transcript=transcript,
            logprobs=logprobs,
        )

    def stream(self, audio: Any, text: Optional[str] = None, **kwargs) -> Iterator[Segment]:
        r"""
        The segments of one recording's transcript as they close, while the model goes on.

        Args:
            audio: a recording.
            text, return_timestamps, speakers, keywords, language, chunk_length_s, thinking_budget, …:
                as in a call; `num_beams` and `num_return_sequences` must be 1, and there are no `output_scores`.

        Returns:
            An iterator of [`Segment`]s. Who stops taking from it, stops the model.

        Raises:
            ValueError: as a call; for more than one recording.
        """
        if isinstance(audio, (list, tuple)) and not is_samples(audio) or isinstance(audio, types.GeneratorType):
            raise ValueError("one recording at a time can be streamed; call `stream` for each.")
        if kwargs.pop("output_scores", None):
            raise ValueError("`output_scores` are known when an answer has ended; call the pipeline itself for them.")
        parameters = self._sanitize_parameters(text=text, **{"task": "transcribe", **kwargs})
        preprocess, forward = {**self._preprocess_params, **parameters[0]}, {**self._forward_params, **parameters[1]}
        for inputs in self.preprocess(audio, **preprocess):
            start, end = inputs["start"], inputs["end"]
            for segment in self._stream(inputs, forward):
                if start is not None:
                    segment = within_piece(segment.shifted(start), start, end)
                yield replace(segment, span=None)

    def _stream(self, inputs: dict[str, Any], forward: dict[str, Any]) -> Iterator[Segment]:
        streamer, stop = SegmentStreamer(self.processor), _Stop()
        criteria = StoppingCriteriaList([*(forward.get("stopping_criteria") or ()), stop])

        def run():
            try:
                self.forward(inputs, **{**forward, "streamer": streamer, "stopping_criteria": criteria})
            except BaseException as error:  # goes on in the thread that reads
                streamer.fail(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield from streamer
        finally:
            stop.asked = True
            thread.join()

    def save_pretrained(self, save_directory, **kwargs):
        """Saves model and processor (see [`Pipeline.save_pretrained`]): a folder that the pipeline loads from."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


class _Stop(StoppingCriteria):
    """Ends a generation whose reader has gone."""

    asked = False

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs) -> torch.BoolTensor:
        return torch.full((input_ids.shape[0],), self.asked, dtype=torch.bool, device=input_ids.device)


def _model_inputs(prompt: Any, features: Mapping[str, Any], piece: Optional[Piece] = None) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "features": features,
        "start": None if piece is None else piece.start,
        "end": None if piece is None else piece.end,
        "is_last": piece is None or piece.is_last,
    }


def _joined(answers: Sequence[Answer], task: Optional[str]) -> str:
    """The answer about a recording, from those about its pieces."""
    if len(answers) == 1:
        return answers[0].text
    if task == "transcribe":
        return stitched_text(_stitched(answers), [answer.text for answer in answers])
    return "\n\n".join(f"{clock(answer.start)}\n{answer.text}" for answer in answers)


def _joined_reasoning(answers: Sequence[Answer]) -> Optional[str]:
    thoughts = [answer.reasoning for answer in answers if answer.reasoning is not None]
    return "\n\n".join(thoughts) if thoughts else None


def _stitched(answers: Sequence[Answer]) -> Transcript:
    return stitch_transcripts([(answer.start, answer.end, answer.transcript) for answer in answers])


def _task_result(answers: Sequence[Answer], task: Optional[str], options: Optional[Sequence[str]]) -> dict[str, Any]:
    """What a result has beside the answer and the reasoning."""
    result: dict[str, Any] = {}
    first, last = answers[0], answers[-1]
    if task is not None:
        result.update(duration=last.end, cut_off=any(answer.cut_off for answer in answers))
    if task == "transcribe":
        transcript = first.transcript if len(answers) == 1 else _stitched(answers)
        result["segments"] = [segment.to_dict() for segment in transcript]
        result["repairs"] = [asdict(repair) for repair in transcript.repairs]
    elif task == "caption" or len(answers) > 1:
        pieces = [Segment(answer.start, answer.end, answer.text, None, *_confidence([answer])) for answer in answers]
        result["segments"] = [piece.to_dict() for piece in pieces]
    if task in ("attributes", "choice"):
        found = [
            parse_json(each.text) if task == "attributes" else chosen_letter(each.text, options) for each in answers
        ]
        result[task] = found[0] if len(found) == 1 else found
    if any(answer.logprobs is not None for answer in answers):
        result["logprob_mean"], result["logprob_min"] = _confidence(answers)
    return result


def _confidence(answers: Sequence[Answer]) -> tuple[Optional[float], Optional[float]]:
    """Mean and minimum of the log-probabilities of all tokens of the answers; None where there are none."""
    values = [value for answer in answers for value in answer.logprobs or ()]
    return (sum(values) / len(values), min(values)) if values else (None, None)


def _is_conversation(item: Any) -> bool:
    """Whether an input is the messages of one chat."""
    return isinstance(item, (list, tuple)) and bool(item) and isinstance(item[0], Mapping) and "role" in item[0]


def _pair(item: Any, text: Any, index: int, total: int) -> Any:
    """An input of a batch with its question."""
    if _is_conversation(item):
        return Conversation(item)
    if text is None or isinstance(text, str):
        question = text
    elif len(text) == total:
        question = text[index]
    else:
        raise ValueError(
            f"`text` has {len(text)} questions for {total} recordings; pass one for all, or one for each."
        )
    if isinstance(item, Mapping) and ("audio" in item or "text" in item or "messages" in item):
        return item if question is None else {"text": question, **item}
    return {"audio": item} if question is None else {"audio": item, "text": question}


def _audio_and_text(inputs: Any, text: Optional[str]) -> tuple[Any, Optional[str]]:
    """Recording and question of one input, None for what is missing."""
    if isinstance(inputs, Mapping) and ("audio" in inputs or "text" in inputs):
        return inputs.get("audio"), inputs.get("text", text)
    return inputs, text


def _full_text(prompt: Any, answer: str) -> Union[str, list[dict[str, Any]]]:
    if not isinstance(prompt, Conversation):
        return prompt + answer
    messages = list(prompt.messages)
    if not prompt.is_open:
        return [*messages, {"role": "assistant", "content": answer}]
    *before, last = messages
    content = last["content"]
    if isinstance(content, str):
        return [*before, {**last, "content": content + answer}]
    *parts, text = content
    return [*before, {**last, "content": [*parts, {**text, "text": text["text"] + answer}]}]


__all__ = ["AudioTextToTextPipeline"]
