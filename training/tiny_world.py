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
"""The world of moss-audio-tiny: short clips of spoken words and plain sounds, and questions about them.

Everything comes from a seed: espeak-ng speaks the words, NumPy makes the sounds, and as each event's place is known, so
is each answer. `python -m moss_audio.training.tiny_world OUT --split test --clips 500 --seed 1` writes it as a data file.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, Callable, NamedTuple, Optional

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

from moss_audio.tasks_moss_audio import (
    RELEASED_CAPTION,
    RELEASED_CHOICE,
    RELEASED_SENTENCES,
    RELEASED_TRANSCRIPTION,
    RELEASED_WORDS,
)


RATE = 16000  # samples per second
BLOCK = RATE // 200  # samples of 5 ms
WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("yes", "no", "stop", "go", "left", "right", "up", "down"),
)
SOUNDS = ("beep", "sweep", "noise burst", "clicks", "bell", "chord")
LABELS = (*WORDS, *SOUNDS)
SPLITS = ("train", "dev", "test")
UTTERANCES = {"train": 2000, "dev": 500, "test": 500}  # of each word
MADE_VOICES = 500  # by chance, for every other utterance of training
CLIP_SECONDS = (2.0, 12.0)
MOST_EVENTS = 5

# Where a spoken word begins and ends: its first and last 5 ms that are at most so much quieter than its loudest ones. What is
# quieter, often an "s" or a "t", sounds before and after, down to where there is silence.
WORD_FLOOR, SILENCE = 10 ** (-26 / 20), 10 ** (-40 / 20)

ACCENTS = (
    *("en-us", "en-us", "en-us", "en-gb", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan"),
    *("en-gb-x-gbcwmd", "en-029"),
)
# Variants of espeak-ng's voices: training and dev speak with the first ones, training with made ones, too, and test with the
# others alone.
HEARD_VARIANTS = (
    *("", "Alex", "Alicia", "Andrea", "Andy", "Annie", "David", "Denis", "Diogo", "Gene", "Henrique", "Hugo", "Lee"),
    *("Marco", "Mario", "Michael", "Mike", "adam", "anika", "announcer", "antonio", "aunty", "benjamin", "boris"),
    *("caleb", "ed", "edward", "f1", "f2", "f4", "grandma", "gustave", "iven", "iven3", "john", "kaukovalta", "klatt"),
    *("klatt3", "klatt5", "linda", "m1", "m2", "m3", "m5", "m7", "marcelo", "max", "michel", "miguel", "norbert"),
    *("pablo", "pedro", "quincy", "rob", "robert", "sandro", "steph", "steph3", "travis", "zac"),
)
UNHEARD_VARIANTS = (
    *("Gene2", "Jacky", "Nguyen", "belinda", "edward2", "f3", "f5", "grandpa", "iven2", "klatt2", "klatt4"),
    *("m4", "m6", "m8", "paul", "shelby", "steph2", "victor"),
)


class Event(NamedTuple):
    """Something to be heard: `start` and `end` in seconds, and one of `LABELS`."""

    start: float
    end: float
    label: str


@dataclass
class Clip:
    """A clip: `waveform` float32 `(samples,)` at 16 kHz, and its events in the order of their starts."""

    waveform: np.ndarray
    events: list[Event]

    @property
    def seconds(self) -> float:
        """Length of the clip in seconds."""
        return len(self.waveform) / RATE


# -------------------------------------------------------------------------------------------------------------- sounds


def check_espeak() -> str:
    """The path of espeak-ng, or a FileNotFoundError that says how to get it."""
    path = shutil.which("espeak-ng")
    if path is None:
        raise FileNotFoundError(
            "The words of the tiny world are spoken by espeak-ng, which is not on the PATH: install it (`apt-get install "
            "espeak-ng`, `brew install espeak-ng`)."
        )
    return path


def make_voices(folder: Path):
    """
    Writes espeak-ng's data with `MADE_VOICES` more variants of voices, "made0" and so on, into a new folder `espeak-ng-data` in
    `folder`, for [`speak`]. Formants, pitch and breath of each are drawn by its number.

    Raises:
        FileNotFoundError: where espeak-ng or its data is missing.
        FileExistsError: where `folder` has espeak-ng's data already.
    """
    version = subprocess.run([check_espeak(), "--version"], capture_output=True, text=True).stdout
    data = Path(version.partition("Data at:")[2].strip() or ".")
    if not (data / "voices" / "!v").is_dir():
        raise FileNotFoundError(f"espeak-ng says {version.strip()!r}, and there are no variants of voices in {data}.")
    shutil.copytree(data, folder / "espeak-ng-data")
    for index in range(MADE_VOICES):
        variant = folder / "espeak-ng-data" / "voices" / "!v" / f"made{index}"
        variant.write_text(_made_voice(index), encoding="utf-8")


def _made_voice(index: int) -> str:
    """A variant as espeak-ng's files describe it; in percent of the voice, but for pitches in hertz and grades of 0 to 7."""
    rng = np.random.default_rng([len(SPLITS), index])
    lowest, throat = rng.uniform(65, 200), rng.uniform(88, 116)
    lines = ["language variant", f"name made{index}", f"pitch {lowest:.0f} {lowest * rng.uniform(1.2, 1.7):.0f}"]
    for formant in range(9):
        frequency, strength, width = throat * rng.uniform(0.94, 1.06), rng.uniform(55, 150), rng.uniform(65, 160)
        lines.append(f"formant {formant} {frequency:.0f} {strength:.0f} {width:.0f}")
    lines.append("consonants {} {}".format(*rng.integers(60, 131, 2)))
    optional = (
        f"voicing {rng.integers(60, 200)}",
        f"roughness {rng.integers(1, 5)}",
        f"flutter {rng.integers(1, 8)}",
        "breath " + " ".join(str(grade) for grade in rng.integers(0, 5, 8)),
        f"echo {rng.integers(40, 150)} {rng.integers(5, 20)}",
        f"klatt {rng.integers(1, 6)}",
    )
    return "\n".join([*lines, *(line for line in optional if rng.random() < 0.25), ""])


_making = Lock()


@cache
def _one_folder_of_voices(count: int) -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory(prefix="voices-")
    make_voices(Path(folder.name))
    return folder


def _made_voices() -> Path:
    """The made voices of this process, which are gone when it ends."""
    with _making:  # or threads would make several
        return Path(_one_folder_of_voices(MADE_VOICES).name)


def speak(
    word: str, voice: str, words_per_minute: int = 160, pitch: int = 50, voices: Optional[Path] = None
) -> np.ndarray:
    """
    A word as espeak-ng says it, without the silence around it.

    Args:
        voice: accent and variant as espeak-ng names them, e.g. "en-us+f2".
        pitch: 0 to 99.
        voices: the folder of [`make_voices`], by default that of espeak-ng itself.

    Returns:
        float32 `(samples,)` at 16 kHz, loudest 5 ms at an RMS of 1.

    Raises:
        FileNotFoundError: where espeak-ng is missing.
        RuntimeError: where it fails or stays silent.
    """
    command = [check_espeak(), "-v", voice, "-s", str(words_per_minute), "-p", str(pitch), "--stdout", word]
    if voices is not None:
        command.insert(1, f"--path={voices}")
    done = subprocess.run(command, capture_output=True)
    if done.returncode or len(done.stdout) <= 44:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.decode(errors='replace').strip() or 'no sound'}")
    import soxr

    rate = int.from_bytes(done.stdout[24:28], "little")  # of a WAV header whose lengths are not filled in
    samples = np.frombuffer(done.stdout[44:], dtype="<i2").astype(np.float32)
    return _trimmed(soxr.resample(samples, rate, RATE))


def _levels(samples: np.ndarray) -> np.ndarray:
    """The RMS of every 5 ms, `(samples // 80,)`."""
    blocks = samples[: len(samples) // BLOCK * BLOCK].reshape(-1, BLOCK)
    return np.sqrt((blocks**2).mean(axis=1))


def loud_part(samples: np.ndarray, floor: float = WORD_FLOOR) -> tuple[int, int]:
    """The samples where a word begins and where it ends."""
    level = _levels(samples)
    loud = np.flatnonzero(level >= floor * level.max())
    return int(loud[0]) * BLOCK, (int(loud[-1]) + 1) * BLOCK


def _trimmed(samples: np.ndarray) -> np.ndarray:
    """A word without the silence around it, at full level."""
    if len(samples) < BLOCK or not samples.any():
        raise RuntimeError("espeak-ng said nothing; another version of it may lack the voice.")
    first, last = loud_part(samples, SILENCE)
    return samples[first:last] / _levels(samples).max()


def raised(samples: np.ndarray, factor: float) -> np.ndarray:
    """All frequencies multiplied by `factor`, and the length divided by it: for more than 1 a smaller throat."""
    return np.interp(np.arange(0, len(samples) - 1, factor), np.arange(len(samples)), samples).astype(np.float32)


class Vocabulary:
    """
    The utterances of one split: `UTTERANCES` of each word, in voices, speeds and pitches of
    that split's own, whatever the seed of a world.

    They are spoken when first needed; `speak_all` speaks them ahead, and `path` keeps them.
    """

    def __init__(self, split: str, utterances: Optional[int] = None):
        self.split = split
        self.utterances = UTTERANCES[split] if utterances is None else utterances
        self._spoken: dict[tuple[str, int], np.ndarray] = {}

    def __call__(self, word: str, index: int) -> np.ndarray:
        """An utterance, float32 `(samples,)` at 16 kHz, loudest 5 ms at an RMS of 1."""
        key = (word, index)
        if key not in self._spoken:
            self._spoken[key] = (self._speak(word, index) * 4096).clip(-32767, 32767).astype(np.int16)
        return self._spoken[key].astype(np.float32) / 4096

    def _speak(self, word: str, index: int) -> np.ndarray:
        rng = np.random.default_rng([SPLITS.index(self.split), WORDS.index(word), index])
        accent, made = rng.choice(ACCENTS), self.split == "train" and index % 2 == 1
        if made:
            variant = f"made{rng.integers(MADE_VOICES)}"
        else:
            variant = rng.choice(UNHEARD_VARIANTS if self.split == "test" else HEARD_VARIANTS)
        voice = "+".join(part for part in (accent, variant) if part)
        speed, pitch = int(rng.integers(110, 230)), int(rng.integers(20, 80))
        samples = speak(word, voice, speed, pitch, _made_voices() if made else None)
        return raised(samples, rng.uniform(0.92, 1.09))

    def speak_all(self, path: Optional[Path] = None):
        """
        Speaks every utterance now, or reads them from the `.npz` at `path`, which is written where it is missing.

        Raises:
            ValueError: where the file lacks some of them.
        """
        keys = [(word, index) for word in WORDS for index in range(self.utterances)]
        names = [f"{word}.{index}" for word, index in keys]
        if path is not None and path.exists():
            with np.load(path) as kept:
                lacking = [name for name in names if name not in kept]
                if lacking:
                    raise ValueError(
                        f"{path} lacks {len(lacking)} of the {len(names)} utterances of {self.split}, such as {lacking[0]}; it "
                        "may be of another version. Remove it, and all are spoken anew."
                    )
                self._spoken.update({key: kept[name] for key, name in zip(keys, names)})
            return
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda key: self(*key), keys))
        if path is not None:
            partial = path.with_name(f"{path.stem}.{os.getpid()}.partial.npz")  # others may be at it, too
            np.savez(partial, **{name: self._spoken[key] for key, name in zip(keys, names)})
            partial.replace(path)


def _time(seconds: float) -> np.ndarray:
    return np.arange(round(seconds * RATE)) / RATE


def _edges(samples: np.ndarray, milliseconds: float = 8) -> np.ndarray:
    """Fades both ends, so that they do not click."""
    count = round(milliseconds * RATE / 1000)
    ramp = np.linspace(0, 1, count)
    samples[:count] *= ramp
    samples[-count:] *= ramp[::-1]
    return samples


def beep(rng: np.random.Generator) -> np.ndarray:
    """A steady tone."""
    return _edges(np.sin(2 * np.pi * rng.uniform(300, 3000) * _time(rng.uniform(0.15, 0.8))))


def sweep(rng: np.random.Generator) -> np.ndarray:
    """A tone that rises by one and a half to two and a half octaves."""
    time, low, ratio = _time(rng.uniform(0.3, 1.0)), rng.uniform(250, 1000), 2 ** rng.uniform(1.5, 2.5)
    octaves = time / time[-1]
    return _edges(np.sin(2 * np.pi * np.cumsum(low * ratio**octaves) / RATE))


def noise_burst(rng: np.random.Generator) -> np.ndarray:
    """White or darker noise."""
    count = round(rng.uniform(0.15, 0.7) * RATE)
    return _edges(coloured_noise(rng, count, np.float32(rng.uniform(0, 0.5))))


def clicks(rng: np.random.Generator) -> np.ndarray:
    """A train of clicks."""
    gap, count = rng.uniform(0.04, 0.1), int(rng.integers(4, 11))
    samples = np.zeros(round((count - 1) * gap * RATE) + RATE // 100)
    time = _time(0.01)
    click = np.sin(2 * np.pi * rng.uniform(1000, 4000) * time) * np.exp(-time / 0.0015)
    for index in range(count):
        start = round(index * gap * RATE)
        samples[start : start + len(click)] += click[: len(samples) - start]
    return samples


def bell(rng: np.random.Generator) -> np.ndarray:
    """Harmonics that decay, the high ones faster; damped when they have lost 20 dB."""
    time = _time(rng.uniform(0.4, 1.2))
    root, decay = rng.uniform(350, 900), np.log(10) / time[-1]
    partials = [np.sin(2 * np.pi * root * k * time) * np.exp(-decay * k**0.7 * time) / k for k in (1, 2, 3, 4.2, 5.4)]
    return _edges(np.sum(partials, axis=0), 4)


def chord(rng: np.random.Generator) -> np.ndarray:
    """Three tones at once."""
    time, root = _time(rng.uniform(0.3, 1.0)), rng.uniform(200, 700)
    third = rng.choice([6 / 5, 5 / 4])
    return _edges(np.sum([np.sin(2 * np.pi * root * ratio * time) for ratio in (1, third, 3 / 2)], axis=0))


SOUND_MAKERS = dict(zip(SOUNDS, (beep, sweep, noise_burst, clicks, bell, chord)))


def coloured_noise(rng: np.random.Generator, count: int, exponent: float) -> np.ndarray:
    """Noise whose amplitude falls with frequency ** `exponent` (0: white, 0.5: pink, 1: brown), RMS 1."""
    noise = rng.standard_normal(count, dtype=np.float32)
    if exponent:
        size = next_fast_len(count, real=True)
        frequency = np.maximum(np.arange(size // 2 + 1, dtype=np.float32) * (RATE / size), 20)
        noise = irfft(rfft(noise, size) * frequency**-exponent, size)[:count]
    return noise / np.sqrt((noise**2).mean())


def _loudest(samples: np.ndarray) -> np.ndarray:
    """Samples with their loudest 5 ms at an RMS of 1."""
    return samples / _levels(samples).max()


# --------------------------------------------------------------------------------------------------------------- clips


class TinyWorld:
    """
    Clips of one split by their number: `world[7]` is the same clip in every process.

    Args:
        split: "train", "dev" or "test". The splits share no clip whatever their seeds; test has voices of its own.
        seed: of the clips.
    """

    def __init__(self, split: str, seed: int, vocabulary: Optional[Vocabulary] = None):
        if split not in SPLITS:
            raise ValueError(f"`split` {split!r} is none of {SPLITS}.")
        self.split, self.seed = split, seed
        self.vocabulary = Vocabulary(split) if vocabulary is None else vocabulary

    def generator(self, index: int, purpose: int = 0) -> np.random.Generator:
        """
        The random numbers of a clip (purpose 0), of the questions about it (1), of what training does to it (2) or splices it
        with (3).
        """
        return np.random.default_rng([SPLITS.index(self.split), self.seed, index, purpose])

    def outline(self, index: int) -> Clip:
        """A clip whose events are known and whose waveform is left silent: a fraction of the work."""
        rng = self.generator(index)
        seconds = rng.uniform(*CLIP_SECONDS)
        events, *_ = self._place(rng, seconds)
        return Clip(np.zeros(round(seconds * RATE), dtype=np.float32), events)

    def __getitem__(self, index: int) -> Clip:
        rng = self.generator(index)
        seconds = rng.uniform(*CLIP_SECONDS)
        events, parts, spans = self._place(rng, seconds)
        waveform = np.zeros(round(seconds * RATE), dtype=np.float32)
        for event, part, (begins, _) in zip(events, parts, spans):
            start = round(event.start * RATE) - begins
            part, start = part[max(0, -start) :], max(0, start)
            waveform[start : start + len(part)] += part[: len(waveform) - start] * 10 ** (rng.uniform(-8, 0) / 20)
        if rng.random() < 0.75:
            below = rng.uniform(18, 50)  # dB under the events' loudest
            waveform += coloured_noise(rng, len(waveform), np.float32(rng.choice([0, 0.5, 1]))) * 10 ** (-below / 20)
        peak = np.abs(waveform).max()
        waveform *= 10 ** (rng.uniform(-26, -1) / 20) / max(peak, 1.0)
        return Clip(waveform.astype(np.float32), events)

    def _place(
        self, rng: np.random.Generator, seconds: float
    ) -> tuple[list[Event], list[np.ndarray], list[tuple[int, int]]]:
        """
        Events in a row, with silence around and between them that is sometimes none, and rarely less; their sounds; and
        from which sample to which of these the events are.
        """
        count = min(int(rng.choice(MOST_EVENTS + 1, p=(0.06, 0.16, 0.2, 0.22, 0.2, 0.16))), int(seconds / 1.1))
        labels = [rng.choice(WORDS) if rng.random() < 0.6 else rng.choice(SOUNDS) for _ in range(count)]
        # How often something was heard is learned where it is heard again.
        if self.split == "train" and rng.random() < 0.25:
            labels = [labels[index] for index in rng.integers(0, 2, count)] if count > 2 else labels[:1] * count
        parts = [self._sound(rng, label) for label in labels]
        spans = [loud_part(part) if label in WORDS else (0, len(part)) for label, part in zip(labels, parts)]
        lengths = [(end - start) / RATE for start, end in spans]
        free = seconds - sum(lengths) - 0.1
        while parts and free < 0:
            free += lengths.pop()
            parts.pop()
            labels.pop()
        gaps = rng.dirichlet(np.full(len(parts) + 1, 1.5)) * free if parts else np.zeros(1)
        for index in range(1, len(parts)):
            chance = rng.random()
            if chance < 0.12:
                gaps[index] = 0.0
            elif chance < 0.15:
                gaps[index] = -0.3 * min(lengths[index - 1], lengths[index])
        starts = 0.05 + np.cumsum(gaps[:-1]) + np.cumsum([0.0, *lengths[:-1]])[: len(parts)]
        events = [
            Event(round(float(start), 2), round(float(start) + length, 2), str(label))
            for start, length, label in zip(starts, lengths, labels)
        ]
        return events, parts, spans

    def _sound(self, rng: np.random.Generator, label: str) -> np.ndarray:
        if label in SOUND_MAKERS:
            return _loudest(SOUND_MAKERS[label](rng))
        samples = self.vocabulary(label, int(rng.integers(self.vocabulary.utterances)))
        # In training no utterance is ever heard again as it was, so that other voices are no surprise.
        return raised(samples, rng.uniform(0.85, 1.18)) if self.split == "train" else samples


# --------------------------------------------------------------------------------------------------- questions, answers


class Question(NamedTuple):
    """One turn about a clip: its kind, what is asked and what is right."""

    task: str
    prompt: str
    answer: str


TRANSCRIBE = (RELEASED_TRANSCRIPTION, "Transcribe this recording.", "What is said?", "Write down the spoken words.")
TIMESTAMPS = (
    RELEASED_SENTENCES,
    RELEASED_WORDS,
    "Transcribe with timestamps.",
    "Transcribe the audio with timestamps.",
    "What is said, and when?",
    "Write down each word with its start and end.",
)
DESCRIBE = (RELEASED_CAPTION, "Describe what can be heard.", "What happens in this clip?")
CHOICE = (RELEASED_CHOICE + "\nQuestion: {question}\n{options}", "{question}\n{options}\nAnswer with a letter.")
BRIEFLY = "Answer with a word."
THINK = ("Think first.", "Think step by step.", "Think before you answer.")
NO_SPEECH = "There is no speech."
NOTHING = "Nothing can be heard."


def _name(label: str) -> str:
    """How an event is called in a sentence."""
    return f'the word "{label}"' if label in WORDS else "clicks" if label == "clicks" else f"a {label}"


def _the(label: str) -> str:
    return f'the word "{label}"' if label in WORDS else "the click train" if label == "clicks" else f"the {label}"


def _plural(label: str) -> str:
    return "click trains" if label == "clicks" else f"{label}s"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def words_of(clip: Clip) -> list[Event]:
    """The spoken events of a clip."""
    return [event for event in clip.events if event.label in WORDS]


def transcript(clip: Clip) -> str:
    """The right answer to `Transcribe the audio.`"""
    return " ".join(event.label for event in words_of(clip)) or NO_SPEECH


def timestamps(clip: Clip) -> str:
    """The right answer to the released prompts for timestamps: every word is a segment."""
    return "".join(f"[{event.start:.2f}]{event.label}[{event.end:.2f}]" for event in words_of(clip)) or NO_SPEECH


def description(clip: Clip) -> str:
    """The right answer to `Describe this audio.`: the events in order, then the length."""
    events = _sentence(", then ".join(_name(event.label) for event in clip.events)) if clip.events else NOTHING
    return f"{events} The clip lasts {clip.seconds:.0f} seconds."


def reasoning(clip: Clip) -> str:
    """What stands in a `<think>` block: the events with their times, one a line."""
    lines = [f"{event.start:.2f} to {event.end:.2f}: {event.label}" for event in clip.events]
    return "\n".join(lines) or "nothing"


def _once(clip: Clip) -> list[Event]:
    """The events whose label comes up once, so that a question can name them."""
    labels = [event.label for event in clip.events]
    return [event for event in clip.events if labels.count(event.label) == 1]


def _pick(rng: np.random.Generator, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def _when(clip: Clip, rng: np.random.Generator) -> Optional[Question]:
    if not _once(clip):
        return None
    event, end = _pick(rng, _once(clip)), rng.random() < 0.4
    words = ("end", "stop", "finish") if end else ("start", "begin", "set in")
    prompt = _pick(rng, ("When does {} {}?", "At what time does {} {}?", "At how many seconds does {} {}?"))
    thing = _the(event.label)
    told = f"ends at {event.end:.2f}" if end else f"starts at {event.start:.2f}"
    return Question("when", prompt.format(thing, _pick(rng, words)), _sentence(f"{thing} {told} seconds"))


def _count(clip: Clip, rng: np.random.Generator) -> Question:
    there = [event.label for event in clip.events]
    kind = rng.random()
    if kind < 0.25:
        prompt = _pick(rng, ("How many words are spoken?", "How many words can be heard?"))
        return Question("count", prompt, f"{len(words_of(clip))}.")
    if kind < 0.4:
        prompt = _pick(rng, ("How many events are there?", "How many events can be heard?"))
        return Question("count", prompt, f"{len(there)}.")
    sounds = [label for label in there if label in SOUNDS]
    label = _pick(rng, sounds) if sounds and rng.random() < 0.7 else _pick(rng, SOUNDS)
    things = _plural(label)
    prompt = _pick(rng, (f"How many {things} are there?", f"How many {things} can be heard?", f"Count the {things}."))
    return Question("count", prompt, f"{there.count(label)}.")


def _neighbour(clip: Clip, event: Event, step: int) -> Optional[str]:
    index = clip.events.index(event) + step
    return clip.events[index].label if 0 <= index < len(clip.events) else None


def _order(clip: Clip, rng: np.random.Generator) -> Optional[Question]:
    if not clip.events:
        return None
    kind = rng.random()
    if kind < 0.2 or not _once(clip):
        first = rng.random() < 0.5
        place = "first" if first else "last"
        prompt = _pick(rng, (f"What comes {place}?", f"What is heard {place}?"))
        return Question("order", prompt, _sentence(f"{place} comes {_name(clip.events[0 if first else -1].label)}"))
    event, after = _pick(rng, _once(clip)), rng.random() < 0.6
    word = "after" if after else "before"
    label = _neighbour(clip, event, 1 if after else -1)
    thing = _the(event.label)
    prompt = _pick(rng, (f"What comes {word} {thing}?", f"What is heard right {word} {thing}?"))
    found = "nothing" if label is None else _name(label)
    return Question("order", prompt, _sentence(f"{word} {thing} comes {found}"))


def _presence(clip: Clip, rng: np.random.Generator) -> Question:
    there = {event.label for event in clip.events}
    if rng.random() < 0.4:
        prompt = _pick(rng, ("Is there speech?", "Does somebody speak?", "Is anything said?"))
        return Question("presence", prompt, "Yes." if words_of(clip) else "No.")
    present = rng.random() < 0.5 and bool(there)
    label = _pick(rng, sorted(there) if present else [label for label in LABELS if label not in there])
    thing = "a click train" if label == "clicks" else _name(label)
    prompt = _pick(rng, (f"Is there {thing}?", f"Can {thing} be heard?", f"Do you hear {thing}?"))
    return Question("presence", prompt, "Yes." if present else "No.")


def _choice(clip: Clip, rng: np.random.Generator) -> Optional[Question]:
    there = [event.label for event in clip.events]
    kind = rng.random()
    if kind < 0.25 or not there:
        label = _pick(rng, SOUNDS)
        question = f"How many {_plural(label)} are there?"
        right, wrong = there.count(label), [0, 1, 2, 3]
        wrong = [number for number in wrong if number != right][:3]
    else:
        question, right = _choice_question(clip, rng)
        wrong = list(rng.permutation([label for label in (LABELS if kind < 0.6 else there) if label != right]))
        if "Which of these" in question:
            wrong = [label for label in rng.permutation(LABELS) if label not in there]
        wrong = list(dict.fromkeys(wrong))[:3]
        while len(wrong) < 3:
            label = _pick(rng, LABELS)
            if label not in (right, *wrong):
                wrong.append(label)
    options = [str(option) for option in rng.permutation(np.array([right, *wrong], dtype=object))]
    letter = "ABCD"[options.index(str(right))]
    return Question("choice", _pick(rng, CHOICE).format(question=question, options=_options(options)), letter)


def _options(options: list[str]) -> str:
    return "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", options))


def _choice_question(clip: Clip, rng: np.random.Generator) -> tuple[str, str]:
    """A question about a clip with events, and the label that answers it."""
    pairs = [(event, _neighbour(clip, event, 1)) for event in _once(clip)]
    pairs = [(event, label) for event, label in pairs if label is not None]
    kind = rng.random()
    if pairs and kind < 0.4:
        event, label = _pick(rng, pairs)
        return f"What comes after {_the(event.label)}?", label
    if kind < 0.6:
        return "What comes first?", clip.events[0].label
    if kind < 0.75:
        return "What comes last?", clip.events[-1].label
    return "Which of these can be heard?", _pick(rng, clip.events).label


ASKERS: dict[str, Callable[[Clip, np.random.Generator], Optional[Question]]] = {
    "transcription": lambda clip, rng: Question("transcription", _pick(rng, TRANSCRIBE), transcript(clip)),
    "timestamps": lambda clip, rng: Question("timestamps", _pick(rng, TIMESTAMPS), timestamps(clip)),
    "description": lambda clip, rng: Question("description", _pick(rng, DESCRIBE), description(clip)),
    "when": _when,
    "count": _count,
    "order": _order,
    "presence": _presence,
    "choice": _choice,
}
WORD_LISTS = ("transcription", "timestamps")  # whose answers list words, and no sounds
_LISTS = (*WORD_LISTS, "description")
_THOUGHTFUL = ("when", "count", "order", "presence", "choice")


def ask(clip: Clip, task: str, rng: np.random.Generator, think: bool = False) -> Optional[Question]:
    """
    A question of one kind about a clip, or None where the clip does not allow one.

    Args:
        task: one of `ASKERS`.
        think: whether the answer opens with a `<think>` block that lists the events.
    """
    question = ASKERS[task](clip, rng)
    if question is None or not think:
        return question
    prompt = (
        f"{question.prompt}\n{_pick(rng, THINK)}"
        if "\n" in question.prompt
        else f"{question.prompt} {_pick(rng, THINK)}"
    )
    return Question(f"{task}-thinking", prompt, f"<think>\n{reasoning(clip)}\n</think>\n\n{question.answer}")


def questions(clip: Clip, rng: np.random.Generator) -> list[Question]:
    """One question of every kind that the clip allows, and one with thinking: what is asked about a written clip."""
    asked = [ask(clip, task, rng) for task in ASKERS]
    asked.append(ask(clip, _pick(rng, _THOUGHTFUL), rng, think=True))
    return [question for question in asked if question is not None]


def turns(clip: Clip, rng: np.random.Generator, most: int = 6) -> list[Question]:
    """
    Questions for one conversation of up to `most` turns: brief ones first, as there is much to learn from few words, and
    whatever lists events last, where no other answer can be read from it instead of being heard: a list, a thought, or two
    [`survey`]s. Before a third of the choices the same is asked without options, so that what remains to be learned is how to
    choose.
    """
    kind, last = rng.random(), []
    if kind < 0.2:
        last = [ask(clip, _pick(rng, _THOUGHTFUL), rng, think=True)]
    elif kind < 0.75:
        last = [ask(clip, _pick(rng, _LISTS), rng)]
    elif most > 2:
        last = surveys(clip, rng)
    last = [question for question in last if question is not None]
    wanted = int(rng.integers(0 if last else 1, most - len(last) + 1))
    asked: dict[str, Question] = {}
    for task in rng.choice([*("when", "order", "choice") * 3, *("count", "presence") * 2], wanted):
        question = ask(clip, str(task), rng)
        opened = opened_choice(question) if question is not None and task == "choice" and rng.random() < 0.35 else None
        asked.update({turn.prompt: turn for turn in (opened, question) if turn is not None})
    return [*list(asked.values())[:wanted], *last] or [ask(clip, _pick(rng, _LISTS), rng)]


SURVEYS = {
    "starts": "When do these start: {}?",
    "ends": "When do these end: {}?",
    "followers": "What comes after each of these: {}?",
    "counts": "How often is each of these heard: {}?",
}


def survey(clip: Clip, kind: str, rng: np.random.Generator) -> Optional[Question]:
    """
    A turn that asks one of `SURVEYS` about each event whose label comes up once, or how often each of some labels is heard. They
    are named in no order, and the answer repeats them: a label is written, and what is to be found about it in the clip
    follows at once. None where there are no such events.
    """
    there = [event.label for event in clip.events]
    if kind == "counts":
        found = {label: str(there.count(label)) for label in (*there, *rng.permutation(LABELS)[:4])}
    elif kind == "followers":
        found = {event.label: f" {_neighbour(clip, event, 1) or 'nothing'}," for event in _once(clip)}
    else:
        found = {event.label: f"{event.start if kind == 'starts' else event.end:.2f}" for event in _once(clip)}
    labels = [str(label) for label in rng.permutation(list(found))]
    answer = " ".join(["The", *(f"{label}{found[label]}" for label in labels)])
    return Question("survey", SURVEYS[kind].format(", ".join(labels)), answer) if labels else None


def surveys(clip: Clip, rng: np.random.Generator) -> list[Question]:
    """Two surveys of different kinds, or fewer where nothing is to be found."""
    asked = [survey(clip, str(kind), rng) for kind in rng.permutation(list(SURVEYS))[:2]]
    return [question for question in asked if question is not None]


def matching(rng: np.random.Generator) -> list[Question]:
    """Six turns that ask for the letters of labels, whatever the clip."""
    labels = [str(label) for label in rng.permutation(LABELS)[:6]]
    options = "\n".join(f"{letter}. {label}" for letter, label in zip("ABCDEF", labels))
    first, *others = rng.permutation(6)
    prompts = {first: f"{options}\nWhich of these is {labels[first]}?"}
    prompts.update({index: f"Which is {labels[index]}?" for index in others})
    return [Question("matching", prompt, "ABCDEF"[index]) for index, prompt in prompts.items()]


def lookups(rng: np.random.Generator) -> list[Question]:
    """
    A turn that asks for the signs of eight labels, whatever the clip: a label is repeated, and what is to be found about it in
    the prompt follows at once.
    """
    labels = [str(label) for label in rng.permutation(LABELS)[:8]]
    signs = [str(sign) for sign in rng.permutation(list("0123456789ABCDEFGH"))[:8]]
    lines = "\n".join(f"{sign}. {label}" for sign, label in zip(signs, labels))
    order = rng.permutation(8)
    pairs = [f"{labels[i]}{signs[i]}" if signs[i].isdigit() else f"{labels[i]} {signs[i]}" for i in order]
    named = ", ".join(labels[index] for index in order)
    return [Question("lookups", f"{lines}\nWhich signs have these: {named}?", " ".join(["The", *pairs]))]


def reading(clip: Clip, rng: np.random.Generator, most: int = 6) -> list[Question]:
    """Up to `most` brief questions for a conversation without sound, which opens with what is in the clip."""
    tasks = ["presence", *rng.choice(["count", "presence", *["order", "choice"] * 2], most - 1)]
    asked = [ask(clip, str(task), rng) for task in rng.permutation(tasks)]
    turns = {question.prompt: question for question in asked if question is not None}
    first, *others = turns.values()
    return [first._replace(prompt=f"{description(clip)}\n{first.prompt}"), *others]


def opened_choice(choice: Question) -> Optional[Question]:
    """
    What a choice asks without its options, or None where it asks about these. The answer is the right option's text: what
    is to be found among the options is known where the answer begins, and not a few words into a sentence.
    """
    lines = choice.prompt.split("\n")
    right = next(line[3:] for line in lines if line.startswith(f"{choice.answer}. "))
    question = next(line for line in lines if line.endswith("?")).removeprefix("Question: ")
    if "these" in question:
        return None
    return Question("count" if right.isdigit() else "order", f"{question} {BRIEFLY}", right)


def listing(clip: Clip, rng: np.random.Generator) -> Question:
    """A question whose answer lists what is in a clip, in order, in one of the ways that there are for it."""
    task = _pick(rng, (*_LISTS, "thinking"))
    if task != "thinking":
        return ask(clip, task, rng)
    return ask(clip, _pick(rng, _THOUGHTFUL), rng, think=True) or ask(clip, "count", rng, think=True)


def listed(question: Question, clip: Clip) -> Optional[list[int]]:
    """
    Where in an answer that lists events each of them has been told: so many of its characters, ascending. None where the answer
    lists none.
    """
    words = question.task in WORD_LISTS
    if not (words or question.task == "description" or question.task.endswith("-thinking")):
        return None
    text, ends, place = question.answer.lower(), [], 0
    for event in words_of(clip) if words else clip.events:
        place = re.compile(rf"\b{event.label}\b").search(text, place).end()
        if question.task == "timestamps":
            place = text.index("]", place) + 1
        ends.append(place)
    return ends


def spliced(first: Clip, second: Clip, rng: np.random.Generator) -> Clip:
    """
    The end of one clip and the beginning of another, both cut where it is quiet and no longer than a clip can be: like a piece of
    a long recording, in which voices, noise and gain change and more may happen than in a clip. Where nothing fits, the first.
    """
    begin = _pick(rng, [time for time in _quiet_times(first) if time < first.seconds - 0.5])
    lead = first.waveform[round(begin * RATE) :]
    lead = lead[: len(lead) // (RATE // 100) * (RATE // 100)]  # so that times stay what they are to the hundredth
    shift = len(lead) / RATE
    shortest, longest = (seconds - shift for seconds in CLIP_SECONDS)
    ends = [time for time in _quiet_times(second) if max(shortest, 0.5) <= time <= longest]
    if not ends:
        return first
    end = _pick(rng, ends)
    kept = [(event, -begin) for event in first.events if event.start >= begin]
    kept += [(event, shift) for event in second.events if event.end <= end]
    events = [Event(round(event.start + by, 2), round(event.end + by, 2), event.label) for event, by in kept]
    return Clip(np.concatenate([lead, second.waveform[: round(end * RATE)]]), events)


def _quiet_times(clip: Clip) -> list[float]:
    """Where a clip may be cut: at its ends, and in the middle between events that are at least 0.2 s apart."""
    gaps = zip((event.end for event in clip.events), (event.start for event in clip.events[1:]))
    return [
        0.0,
        *(round((end + start) / 2, 2) for end, start in gaps if start - end >= 0.2),
        int(clip.seconds * 100) / 100,
    ]


def messages(audio: Optional[dict[str, Any]], asked: list[Question]) -> list[dict[str, Any]]:
    """A conversation about one clip in Transformers' chat layout; the clip, if there is one, stands in its first turn."""
    chat = []
    for index, question in enumerate(asked):
        text = [{"type": "text", "text": question.prompt}]
        content = [{"type": "audio", **audio}, *text] if audio and index == 0 else text
        chat.append({"role": "user", "content": content})
        chat.append({"role": "assistant", "content": [{"type": "text", "text": question.answer}]})
    return chat


# ---------------------------------------------------------------------------------------------------------------- files


def write(folder: Path, split: str, clips: int, seed: int):
    """
    Writes clips as 16-bit WAV files and two JSON Lines files: `SPLIT.jsonl`, the questions in the training layout, a
    line each, with `task`, `events` and `duration` beside the messages; and `SPLIT.clips.jsonl`, a line for each clip
    with its events. The latter is written last.

    Raises:
        FileExistsError: where `folder` holds this split already.
    """
    import soundfile
    from tqdm import tqdm

    data, listing = folder / f"{split}.jsonl", folder / f"{split}.clips.jsonl"
    if listing.exists():
        raise FileExistsError(f"{listing} is there already; choose another folder, or remove it.")
    (folder / split).mkdir(parents=True, exist_ok=True)
    world = TinyWorld(split, seed)
    lines, clip_lines = [], []
    for index in tqdm(range(clips), desc=f"{split} clips", unit="clip"):
        clip = world[index]
        name = f"{split}/{index:05d}.wav"
        soundfile.write(folder / name, clip.waveform, RATE, subtype="PCM_16")
        facts = {"duration": round(clip.seconds, 3), "events": [event._asdict() for event in clip.events]}
        clip_lines.append({"path": name, **facts})
        for question in questions(clip, world.generator(index, 1)):
            chat = messages({"path": name}, [question])
            # An error rate of words is one of what is spoken.
            task = "no-speech" if question.answer == NO_SPEECH else question.task
            lines.append({"messages": chat, "task": task, "clip": index, **facts})
    for path, content in ((data, lines), (listing, clip_lines)):
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in content), encoding="utf-8")
        partial.replace(path)


def main(arguments: Optional[list[str]] = None):
    """The command `python -m moss_audio.training.tiny_world`."""
    parser = argparse.ArgumentParser(prog="python -m moss_audio.training.tiny_world", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="OUT", help="where the clips and the data file go")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.clips < 1 or options.seed < 0:
        parser.error(f"--clips {options.clips} must be at least 1, and --seed {options.seed} at least 0")
    try:
        write(options.folder, options.split, options.clips, options.seed)
    except (OSError, RuntimeError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
