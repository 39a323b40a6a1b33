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
"""Prompts for what people ask of a recording most: transcripts, captions, the voice as JSON, questions, choices, summaries.

Constants named RELEASED are what the published checkpoints were evaluated with, to the letter; all other wordings are this
package's own, and what the checkpoints make of them has not been measured.
"""

import re
from collections.abc import Sequence
from typing import Any, Optional, Union

from transformers import BatchFeature
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from .audio_moss_audio import AudioSource, is_samples


RELEASED_TRANSCRIPTION = "Transcribe the audio."
_RELEASED_TIMESTAMPS = (
    "Transcribe the audio into {}-level timestamps using the format [xx.xx]text[yy.yy], where xx.xx and yy.yy are "
    "timestamps with centisecond precision rounded to two decimal places. Concatenate consecutive segments without breaks. "
    "For example: [0.00]hello there[2.01][2.01]the weather is nice today[4.32]. Do not include any additional content such "
    "as explanations, headings, or annotations."
)
RELEASED_SENTENCES = _RELEASED_TIMESTAMPS.format("sentence")
RELEASED_WORDS = _RELEASED_TIMESTAMPS.format("word")
RELEASED_SPEAKERS = (
    "Transcribe the audio into text. Each sentence should begin with a start timestamp and a speaker label ([S01], [S02], "
    "[S03], ...), followed by the corresponding spoken content, and end with an end timestamp to clearly indicate the time "
    "span of that sentence."
)
RELEASED_ATTRIBUTES = (
    "Describe the vocal characteristics in the audio in JSON format. Include the following fields: gender, age, pitch, "
    "speed, volume, clarity, fluency, accent, texture, emotion, tone, personality, and summary. Fill each field with the "
    "corresponding description."
)
RELEASED_CHOICE = (
    "Choose the most suitable answer from options A, B, C, and D for the question on the next line. You should output only "
    "A, B, C, or D. Do not provide any additional explanations or content."
)
RELEASED_CAPTION = "Describe this audio."
SUMMARY = "Summarize what is said in this audio."

TASKS = ("transcribe", "caption", "attributes", "question", "choice", "summarize")


def task_prompt(
    task: str,
    text: Optional[str] = None,
    language: Optional[str] = None,
    timestamps: Optional[str] = None,
    speakers: bool = False,
    keywords: Union[str, Sequence[str], None] = None,
    options: Optional[Sequence[str]] = None,
) -> str:
    """
    The user's text for a task.

    Args:
        task: one of `TASKS`.
        text: the question of the tasks "question" and "choice"; for the others a wording of one's own, instead of the
            default one.
        language, timestamps, speakers, keywords: of a transcript; see
            [`TaskRequests.apply_transcription_request`].
        options: of a choice; see [`TaskRequests.apply_choice_request`].

    Raises:
        ValueError: for an unknown task or an argument that does not go with the task or the others.
    """
    if task not in TASKS:
        raise ValueError(f"`task` {task!r} is none of {', '.join(TASKS)}.")
    transcript = {"language": language, "timestamps": timestamps, "speakers": speakers, "keywords": keywords}
    given = [name for name, value in transcript.items() if value] if task != "transcribe" else []
    given += ["options"] if options is not None and task != "choice" else []
    if given:
        raise ValueError(f"`{given[0]}` does not go with the task {task!r}; leave it out, or choose another `task`.")
    if task == "transcribe":
        return _transcription(text, **transcript)
    if task in ("question", "choice") and not text:
        raise ValueError(f"the task {task!r} needs a question; pass it as `text`.")
    if task == "choice":
        return _choice(text, options)
    return text or {"caption": RELEASED_CAPTION, "attributes": RELEASED_ATTRIBUTES, "summarize": SUMMARY}[task]


def _transcription(
    text: Optional[str],
    language: Optional[str],
    timestamps: Optional[str],
    speakers: bool,
    keywords: Union[str, Sequence[str], None],
) -> str:
    if timestamps not in (None, "sentence", "word"):
        raise ValueError(f"`timestamps` {timestamps!r} is none of None, 'sentence' and 'word'.")
    if text and (timestamps or speakers):
        name = f"timestamps={timestamps!r}" if timestamps else "speakers=True"
        raise ValueError(f"`{name}` chooses a prompt, and another one is passed; leave one of them out.")
    if timestamps == "word" and speakers:
        raise ValueError(
            "`timestamps='word'` does not go with `speakers=True`: the checkpoints know speakers by sentence only. Pass "
            "timestamps='sentence', or None, which is the same with speakers."
        )
    released = {None: RELEASED_TRANSCRIPTION, "sentence": RELEASED_SENTENCES, "word": RELEASED_WORDS}
    prompt = text or (RELEASED_SPEAKERS if speakers else released[timestamps])
    if language is not None:
        prompt += f" The language is {language_name(language)}."
    words = [keywords] if isinstance(keywords, str) else list(keywords or ())
    words = [" ".join(word.split()) for word in words]
    if not all(words):
        raise ValueError(f"`keywords` {list(words)!r} holds an empty one; take it out.")
    if words:
        prompt += f" These words may occur: {', '.join(words)}."
    return prompt


def _choice(question: str, options: Optional[Sequence[str]]) -> str:
    """The released prompt; the names of the options are those that there are."""
    if options is None:
        return f"{RELEASED_CHOICE}\nQuestion: {question}"
    if isinstance(options, str) or not 2 <= len(options) <= 26:
        raise ValueError(f"`options` {options!r:.80} must be a list of 2 to 26 answers to choose from.")
    letters = [chr(ord("A") + index) for index in range(len(options))]
    comma = "," if len(letters) > 2 else ""
    instruction = RELEASED_CHOICE.replace("A, B, C, and D", f"{', '.join(letters[:-1])}{comma} and {letters[-1]}")
    instruction = instruction.replace("A, B, C, or D", f"{', '.join(letters[:-1])}{comma} or {letters[-1]}")
    lines = [f"{letter}. {option}" for letter, option in zip(letters, options)]
    return "\n".join([instruction, f"Question: {question}", *lines])


def language_name(language: str) -> str:
    """
    The English name of a language that is given by its ISO 639-1 code ("de", "pt-BR") or by name.

    Raises:
        ValueError: for a code that is not known, and what is no string.
    """
    if not isinstance(language, str):
        raise ValueError(
            f"`language` {language!r:.80} must be a code such as 'de' or the name of a language in English."
        )
    code = re.split("[-_]", language.strip().lower())[0]
    if code in LANGUAGES:
        return LANGUAGES[code].title()
    if len(code) <= 3:
        raise ValueError(
            f"`language` {language!r} is no code that is known; pass the name of the language in English, such as "
            "'Swiss German', or one of the codes "
            f"{', '.join(sorted(LANGUAGES))}."
        )
    return language.strip() if language.strip()[:1].isupper() else language.strip().title()


def chosen_letter(answer: str, options: Optional[Sequence[str]] = None) -> Optional[str]:
    """
    The letter in the answer to a multiple choice: "B", "(B)", "B. A dog", "The answer is B."; or of the option that the
    answer repeats. None where it names none, or several.
    """
    letters = "ABCD" if options is None else "".join(chr(ord("A") + index) for index in range(len(options)))
    answer = answer.strip().strip("*`\"' ")
    listed = set(re.findall(rf"(?<![\w'])([{letters}])(?=[).:\]])", answer))
    if len(listed) > 1 or re.search(rf"\b[{letters}]\s*(?:/|\bor\b|\band\b|&)\s*[{letters}]\b", answer):
        return None
    if match := re.match(rf"\W*([{letters}])(?:\W*$|[).:\]]|,\s(?![{letters}]\b)|\s*\n|\s+[-–—]\s)", answer):
        return match.group(1)
    for index, option in enumerate(options or ()):
        if answer.rstrip(".").casefold() == option.strip().rstrip(".").casefold():
            return letters[index]
    named = set(re.findall(rf"(?:\b(?i:answer|option|choice)\b(?:\s+is)?\W*|[(\[])([{letters}])(?:\W|$)", answer))
    return named.pop() if len(named) == 1 else None


class TaskRequests:
    """
    What the processor offers beside the raw call: model inputs for a task, without writing a prompt or a chat.

    In all of these `audio` is a recording or a list of recordings (see [`load_audio`]), or of lists of recordings that
    belong to one request; the other arguments hold for all of them, or come as a list with one for each. The result is a
    batch, also for one recording: [`BatchFeature`] as from a call of the processor, or with `tokenize=False` the prompts as
    a list of strings, for `processor(text=prompts, audio=audio)`. `kwargs` go to `apply_chat_template`:
    `enable_thinking=False`, `sampling_rate`, `enable_time_marker`, `return_tensors`, ….
    """

    def apply_transcription_request(
        self,
        audio: Union[AudioSource, list],
        prompt: Union[str, list[Optional[str]], None] = None,
        language: Union[str, list[Optional[str]], None] = None,
        timestamps: Optional[str] = None,
        speakers: bool = False,
        keywords: Union[str, list[str], list[list[str]], None] = None,
        tokenize: bool = True,
        **kwargs,
    ) -> Union[BatchFeature, list[str]]:
        r"""
        Inputs for a transcript.

        Args:
            audio (recording or list):
                What to transcribe.
            prompt (`str` or `list[str]`, *optional*):
                A wording of one's own instead of the released one.
            language (`str` or `list[str]`, *optional*):
                ISO 639-1 code or English name of the language spoken, added in words of ours. The model finds out by
                itself.
            timestamps (`str`, *optional*):
                "sentence" or "word": the released prompts for answers like `[0.00]hello there[2.01]`.
            speakers (`bool`, *optional*, defaults to `False`):
                The released prompt for answers like `[0.00][S01]Hello.[7.56]`, which have a time span for every sentence:
                `timestamps` may be None or "sentence" beside it.
            keywords (`str`, `list[str]` or `list[list[str]]`, *optional*):
                Names and terms that may occur, added in words of ours; a list of lists has one for each recording.
            tokenize (`bool`, *optional*, defaults to `True`):
                Whether to load the recordings and return model inputs; otherwise the prompts.

        Raises:
            ValueError: where arguments contradict each other or lists have not one entry for each recording; and as a call
                of the processor.
        """
        nested = isinstance(keywords, (list, tuple)) and any(isinstance(each, (list, tuple)) for each in keywords)
        each = {"text": ("prompt", prompt), "language": ("language", language)}
        if nested:
            each["keywords"] = ("keywords", list(keywords))
        shared = {"timestamps": timestamps, "speakers": speakers, **({} if nested else {"keywords": keywords})}
        return self._apply_request("transcribe", audio, each, shared, tokenize, kwargs)

    def apply_caption_request(
        self,
        audio: Union[AudioSource, list],
        prompt: Union[str, list[Optional[str]], None] = None,
        tokenize: bool = True,
        **kwargs,
    ) -> Union[BatchFeature, list[str]]:
        """Inputs for a description of all that is heard; `prompt` is a wording of one's own instead of the released one."""
        return self._apply_request("caption", audio, {"text": ("prompt", prompt)}, {}, tokenize, kwargs)

    def apply_attributes_request(
        self,
        audio: Union[AudioSource, list],
        prompt: Union[str, list[Optional[str]], None] = None,
        tokenize: bool = True,
        **kwargs,
    ) -> Union[BatchFeature, list[str]]:
        """
        Inputs for a description of the voice as JSON, with gender, age, pitch, speed, volume, clarity, fluency, accent,
        texture, emotion, tone, personality and summary (the released prompt); [`parse_json`] reads the answer.
        """
        return self._apply_request("attributes", audio, {"text": ("prompt", prompt)}, {}, tokenize, kwargs)

    def apply_question_request(
        self,
        audio: Union[AudioSource, list],
        question: Union[str, list[str]],
        tokenize: bool = True,
        **kwargs,
    ) -> Union[BatchFeature, list[str]]:
        """Inputs for an answer to a question in one's own words."""
        return self._apply_request("question", audio, {"text": ("question", question)}, {}, tokenize, kwargs)

    def apply_choice_request(
        self,
        audio: Union[AudioSource, list],
        question: Union[str, list[str]],
        options: Union[list[str], list[list[str]], None] = None,
        tokenize: bool = True,
        **kwargs,
    ) -> Union[BatchFeature, list[str]]:
        """
        Inputs for a choice among answers; [`chosen_letter`] reads the model's. `options` are written below the question as
        "A. …", or stand in it already; the released prompt is for four, and is adapted to another number.
        """
        nested = bool(options) and isinstance(options[0], (list, tuple))
        each = {"text": ("question", question)}
        if nested:
            each["options"] = ("options", list(options))
        shared = {} if nested else {"options": options}
        return self._apply_request("choice", audio, each, shared, tokenize, kwargs)

    def apply_summary_request(
        self,
        audio: Union[AudioSource, list],
        prompt: Union[str, list[Optional[str]], None] = None,
        tokenize: bool = True,
        **kwargs,
    ) -> Union[BatchFeature, list[str]]:
        """Inputs for a summary of what is said, in words of ours unless a `prompt` is given."""
        return self._apply_request("summarize", audio, {"text": ("prompt", prompt)}, {}, tokenize, kwargs)

    def _apply_request(
        self,
        task: str,
        audio: Any,
        each: dict[str, tuple[str, Any]],
        shared: dict[str, Any],
        tokenize: bool,
        kwargs: dict[str, Any],
    ) -> Union[BatchFeature, list[str]]:
        """`each` holds arguments of `task_prompt` that may be lists, with the names by which the caller knows them."""
        recordings = list(audio) if isinstance(audio, (list, tuple)) and not is_samples(audio) else [audio]
        if not recordings:
            raise ValueError("`audio` is an empty list; pass at least one recording.")
        lists = {name: _for_each(value, len(recordings), called) for name, (called, value) in each.items()}
        conversations = []
        for index, clips in enumerate(recordings):
            prompt = task_prompt(task, **{name: values[index] for name, values in lists.items()}, **shared)
            conversations.append(task_messages(prompt, clips))
        options = {"add_generation_prompt": True, "return_dict": True, **kwargs}
        return self.apply_chat_template(conversations, tokenize=tokenize, **options)


def task_messages(prompt: str, clips: Any) -> list[dict[str, Any]]:
    """The messages of a chat that asks for something about a clip, several or none."""
    if clips is None:
        clips = []
    elif not isinstance(clips, (list, tuple)) or is_samples(clips):
        clips = [clips]
    parts = [*({"type": "audio", "audio": clip} for clip in clips), {"type": "text", "text": prompt}]
    return [{"role": "user", "content": parts}]


def _for_each(value: Any, count: int, name: str) -> list[Any]:
    """An argument for each recording."""
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise ValueError(
            f"`{name}` has {len(value)} entries for {count} recordings; pass one for all, or one for each."
        )
    return list(value)


__all__ = ["TASKS", "TaskRequests", "chosen_letter", "language_name", "task_prompt"]
