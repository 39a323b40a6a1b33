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
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..training.tiny_world import RATE, Clip, Event, Question, questions, reasoning
from ..transcripts_moss_audio import split_reasoning
from . import DEMO


SEED = 0  # of the wordings


def read_clips(listing: Path = Path(DEMO, "demo.clips.jsonl")) -> list[tuple[Path, Clip]]:
    """The recordings of a `.clips.jsonl` file of `tiny_world`, and what is in each; the waveforms are left silent."""
    clips = []
    for line in listing.read_text(encoding="utf-8").splitlines():
        facts = json.loads(line)
        silence = np.zeros(round(facts["duration"] * RATE), dtype=np.float32)
        events = [Event(**event) for event in facts["events"]]
        clips.append((listing.parent / facts["path"], Clip(silence, events)))
    return clips


def main_questions(clip: Clip, index: int) -> list[Question]:
    """One question of every kind about the clip of this index, with its right answer."""
    return questions(clip, np.random.default_rng([SEED, index]))


def run(pipe: Any) -> str:
    """
    Asks everything about every clip of the demo.

    Args:
        pipe ([`~moss_audio.AudioTextToTextPipeline`]): of the checkpoint.

    Returns:
        The answers, to be printed; each that is not to the letter what the clip holds is followed by what it holds.
    """
    parts = []
    for index, (path, clip) in enumerate(read_clips()):
        parts.append(f"{path.name}, {clip.seconds:.1f} s. In it:\n{textwrap.indent(reasoning(clip), '    ')}\n")
        asked = main_questions(clip, index)
        inputs = [{"audio": str(path), "text": question.prompt} for question in asked]
        start = time.perf_counter()
        results = pipe(inputs, batch_size=len(inputs), max_new_tokens=256, do_sample=False)
        seconds = time.perf_counter() - start
        parts += [_exchange(question, result) for question, result in zip(asked, results)]
        parts.append(f"  {len(asked)} answers in {seconds:.1f} s.\n")
    return "\n".join(parts)


def _exchange(question: Question, result: dict[str, Any]) -> str:
    right, answer = split_reasoning(question.answer)[1], result["generated_text"]
    lines = textwrap.wrap(
        question.prompt, 110, initial_indent="  ", subsequent_indent="  ", max_lines=2, placeholder=" …"
    )
    if result["reasoning"]:
        lines += [f"    ({line})" for line in result["reasoning"].splitlines()]
    lines.append(f"    {answer}")
    if answer != right:
        lines.append(f"    in the clip: {right}")
    return "\n".join(lines) + "\n"
