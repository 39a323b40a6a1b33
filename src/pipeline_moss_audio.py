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
"""`pipeline("audio-text-to-text")`: recordings and questions in, answers out, one by one or in batches.

Each input is loaded and turned into features by itself (in DataLoader workers if asked for); a batch is joined right
before the model runs, because clips are not rows and cannot be padded as Transformers' collator would.
"""

import types
from collections.abc import Iterator, Mapping
from typing import Any, Optional, Union

from transformers import Pipeline
from transformers.utils import logging

# The first is for Transformers 5.8 to 5.13, which put into their cache what a file imports itself, and no more.
from .configuration_moss_audio import MossAudioConfig  # noqa: F401
from .transcripts_moss_audio import split_reasoning


logger = logging.get_logger(__name__)

DEFAULT_TEXT = "Describe this audio."


class Conversation:
    """The messages of one chat: a class of its own, because a list would be taken for a batch."""

    def __init__(self, messages: list[dict[str, Any]]):
        self.messages = list(messages)

    @property
    def is_open(self) -> bool:
        """Whether the last message is an assistant's, which the answer then continues."""
        return self.messages[-1]["role"] == "assistant"


class AudioTextToTextPipeline(Pipeline):
    r"""
    Answers questions about recordings.

    ```python
    >>> from transformers import pipeline
    >>> import moss_audio

    >>> pipe = pipeline("audio-text-to-text", model="OpenMOSS-Team/MOSS-Audio-4B-Instruct")
    >>> pipe("recording.wav", text="What is said?")
    {'generated_text': '…', 'reasoning': None}
    >>> pipe(["a.wav", "b.mp3"], text="Describe this audio.", batch_size=2)
    [{'generated_text': '…', 'reasoning': None}, {'generated_text': '…', 'reasoning': None}]
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
        preprocess = {
            "text": text,
            "sampling_rate": sampling_rate,
            "enable_time_marker": enable_time_marker,
            "enable_thinking": enable_thinking,
            "continue_final_message": continue_final_message,
        }
        postprocess = {"return_full_text": return_full_text, "return_raw_text": return_raw_text}
        return (
            {name: value for name, value in preprocess.items() if value is not None},
            {**(generate_kwargs or {}), **generation_parameters},
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
            batch_size (`int`, *optional*, defaults to 1):
                How many inputs of a list, generator or dataset the model answers at once.
            num_workers (`int`, *optional*, defaults to 0):
                Processes that load recordings.
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
            max_new_tokens, num_return_sequences, do_sample, streamer, … (*optional*):
                Go to [`~transformers.GenerationMixin.generate`], as does a dict `generate_kwargs`.

        Returns:
            For one input a dict, for a list a list, for a generator or dataset an iterator of dicts with
            `generated_text` (`str`) and `reasoning` (`str`, or None where there is no `<think>` block). With
            `num_return_sequences` above 1, a list of such dicts for each input.

        Raises:
            ValueError: where an input is no sound, or texts and recordings are not of one number.
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
        if isinstance(audio, Iterator) and not isinstance(audio, types.GeneratorType) and not hasattr(audio, "read"):
            audio = (item for item in audio)  # Transformers streams generators only
        if isinstance(audio, types.GeneratorType):
            audio = (Conversation(item) if _is_conversation(item) else item for item in audio)
        return super().__call__(audio, text=text, **kwargs)

    def preprocess(
        self,
        inputs: Any,
        text: Optional[str] = None,
        enable_thinking: Optional[bool] = None,
        continue_final_message: Optional[bool] = None,
        **processor_kwargs,
    ) -> dict[str, Any]:
        if isinstance(inputs, Mapping) and "messages" in inputs:
            inputs = Conversation(inputs["messages"])
        if not isinstance(inputs, Conversation):
            audio, question = _audio_and_text(inputs, text)
            if enable_thinking is None:
                features = self.processor(text=question, audio=audio, **processor_kwargs)
                return {"prompt": question, "features": features}
            clips = [] if audio is None else audio if isinstance(audio, (list, tuple)) else [audio]
            parts = [*({"type": "audio", "audio": clip} for clip in clips), {"type": "text", "text": question}]
            inputs = Conversation([{"role": "user", "content": parts}])
        else:
            question = inputs
        resume = inputs.is_open if continue_final_message is None else continue_final_message
        variables = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        features = self.processor.apply_chat_template(
            inputs.messages,
            tokenize=True,
            return_dict=True,
            add_generation_prompt=not resume,
            continue_final_message=resume,
            processor_kwargs=processor_kwargs,
            **variables,
        )
        return {"prompt": question, "features": features}

    def _forward(self, model_inputs: dict[str, Any], **generate_kwargs) -> dict[str, Any]:
        prompts, features = model_inputs["prompt"], model_inputs["features"]
        if not isinstance(features, list):  # a single input has not gone through the collator
            prompts, features = [prompts], [features]
        batch = self.processor.pad(features).to(self.device)
        if hasattr(self, "_prepare_generate_kwargs"):  # version 5 of Transformers
            generate_kwargs = self._prepare_generate_kwargs(generate_kwargs, return_dict_in_generate=False)
        else:
            generate_kwargs = {"generation_config": self.generation_config, **generate_kwargs}
            generate_kwargs["return_dict_in_generate"] = False
        if getattr(self, "assistant_model", None) is not None:
            generate_kwargs.setdefault("assistant_model", self.assistant_model)
        ids = self.model.generate(**batch, **generate_kwargs)
        new = ids[:, batch["input_ids"].shape[1] :]
        return {"prompt": prompts, "ids": list(new.view(len(prompts), -1, new.shape[1]))}

    def postprocess(
        self, model_outputs: dict[str, Any], return_full_text: bool = False, return_raw_text: bool = False
    ) -> Union[dict[str, Any], list[dict[str, Any]]]:
        prompt, ids = model_outputs["prompt"], model_outputs["ids"][0]  # (sequences, new tokens)
        if isinstance(prompt, list):  # a single input has not been taken out of a batch
            prompt = prompt[0]
        results = [self._result(prompt, row, return_full_text, return_raw_text) for row in ids]
        return results[0] if len(results) == 1 else results

    def _result(self, prompt: Any, ids: Any, return_full_text: bool, return_raw_text: bool) -> dict[str, Any]:
        text = self.processor.decode(ids, skip_special_tokens=True)
        reasoning, answer = split_reasoning(text)
        if reasoning is None and isinstance(prompt, Conversation) and prompt.is_open:
            answer = text  # it goes on in the middle of a sentence: its spaces count
        result = {"generated_text": _full_text(prompt, answer) if return_full_text else answer, "reasoning": reasoning}
        if return_raw_text:
            ids = ids[ids != self.processor.tokenizer.pad_token_id]
            result["raw_text"] = self.processor.decode(ids, skip_special_tokens=False)
        return result

    def save_pretrained(self, save_directory, **kwargs):
        """Saves model and processor (see [`Pipeline.save_pretrained`]): a folder that the pipeline loads from."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


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


def _audio_and_text(inputs: Any, text: Optional[str]) -> tuple[Any, str]:
    """Recording (None without one) and question of one input."""
    if isinstance(inputs, Mapping) and ("audio" in inputs or "text" in inputs):
        audio, text = inputs.get("audio"), inputs.get("text", text)
    else:
        audio = inputs
    return audio, DEFAULT_TEXT if text is None else text


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
