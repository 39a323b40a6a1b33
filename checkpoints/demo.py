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
"""`moss-audio demo`: the small checkpoint answers the main questions about the demo clips, beside what is in them."""

import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from ..training.tiny_world import (
    RATE,
    TIMESTAMPS,
    Clip,
    Event,
    description,
    reasoning,
    timestamps,
    transcript,
    words_of,
)
from . import DEMO


def read_clips(listing: Path = Path(DEMO, "demo.clips.jsonl")) -> list[tuple[Path, Clip]]:
    """The recordings of a `.clips.jsonl` file of `tiny_world`, and what is in each; the waveforms are left silent."""
    clips = []
    for line in listing.read_text(encoding="utf-8").splitlines():
        facts = json.loads(line)
        silence = np.zeros(round(facts["duration"] * RATE), dtype=np.float32)
        events = [Event(**event) for event in facts["events"]]
        clips.append((listing.parent / facts["path"], Clip(silence, events)))
    return clips


def questions(clip: Clip) -> list[tuple[str, str]]:
    """The main questions about a clip, each with its right answer."""
    asked = [
        ("Describe this audio.", description(clip)),
        ("Transcribe the audio.", transcript(clip)),
        (TIMESTAMPS[0], timestamps(clip)),
        ("How many words are spoken?", f"{len(words_of(clip))}."),
    ]
    labels = [event.label for event in clip.events]
    for event in clip.events:
        if labels.count(event.label) == 1 and event.label != "clicks":
            name = f'the word "{event.label}"' if event in words_of(clip) else f"the {event.label}"
            asked.append((f"When does {name} start? Think first.", f"At {event.start:.2f} seconds."))
            break
    return asked


def run(pipe: Any) -> str:
    """
    Asks everything about every clip of the demo.

    Args:
        pipe ([`~moss_audio.AudioTextToTextPipeline`]): of the checkpoint.

    Returns:
        The answers, to be printed; each that is not to the letter what the clip holds is followed by what it holds.
    """
    parts = []
    for path, clip in read_clips():
        parts.append(f"{path.name}, {clip.seconds:.1f} s. In it:\n{textwrap.indent(reasoning(clip), '    ')}\n")
        asked = questions(clip)
        inputs = [{"audio": str(path), "text": question} for question, _ in asked]
        results = pipe(inputs, batch_size=len(inputs), max_new_tokens=256, do_sample=False)
        for (question, right), result in zip(asked, results):
            parts.append(_exchange(question, right, result))
    return "\n".join(parts)


def _exchange(question: str, right: str, result: dict[str, Any]) -> str:
    answer = result["generated_text"]
    lines = [f"  {textwrap.shorten(question, 90, placeholder=' …')}"]
    if result["reasoning"]:
        lines += [f"    ({line})" for line in result["reasoning"].splitlines()]
    lines.append(f"    {answer}")
    if answer != right:
        lines.append(f"    in the clip: {right}")
    return "\n".join(lines) + "\n"
