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
"""How good answers are: word error rate, timestamp deviation, exact matches and event F1.

Each metric takes the references and the hypotheses of all samples, and returns its figures and which samples are wrong.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moss_audio.tasks_moss_audio import chosen_letter
from moss_audio.transcripts_moss_audio import Transcript, parse_transcript


TIME_COLLAR = 0.2  # seconds: the usual onset collar of sound event detection
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
# Scripts without spaces are compared by the character, as the field does.
_RANGES = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNSPACED = re.compile(f"[{_RANGES}]")
_SPACED = re.compile(rf"[^\W{_RANGES}]")  # what words of the other scripts are made of


@dataclass
class Score:
    """
    The figures of one metric over some samples.

    Args:
        figures: name to value; rates are fractions, `aas_ms` is in milliseconds. A figure without anything to measure
            is None.
        wrong: for each sample whether its answer is not fully right.
    """

    figures: dict[str, Any]
    wrong: list[bool]


def normalised(text: str) -> str:
    """A text as metrics compare it: compatibility forms and case folded, no punctuation or symbols, single spaces."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    kept = (" " if unicodedata.category(char)[0] in "PSZC" and char != "'" else char for char in text)
    return " ".join("".join(kept).split())


def words_of(text: str) -> list[str]:
    """The words of a text as error rates count them; each character of a script without spaces is one."""
    return _UNSPACED.sub(r" \g<0> ", normalised(text)).split()


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> Score:
    """Substituted, missing and added words over the words of the references, by jiwer; see [`words_of`]."""
    return _error_rate("wer", [words_of(text) for text in references], [words_of(text) for text in hypotheses])


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> Score:
    """The same of characters, spaces left out."""
    references, hypotheses = ([list("".join(words_of(text))) for text in texts] for texts in (references, hypotheses))
    return _error_rate("cer", references, hypotheses)


def _error_rate(name: str, references: list[list[str]], hypotheses: list[list[str]]) -> Score:
    wrong = [reference != hypothesis for reference, hypothesis in zip(references, hypotheses)]
    spoken = [index for index, reference in enumerate(references) if reference]
    errors = sum(len(hypotheses[index]) for index in range(len(references)) if not references[index])  # all added
    if spoken:
        joined = [[" ".join(units[index]) for index in spoken] for units in (references, hypotheses)]
        counts = import_jiwer().process_words(*joined)
        errors += counts.substitutions + counts.deletions + counts.insertions
    total = sum(map(len, references))
    return Score({name: errors / total if total else None}, wrong)


def import_jiwer() -> Any:
    """The module jiwer, or an ImportError that says how to get it."""
    try:
        import jiwer
    except ImportError as error:
        raise ImportError("error rates need jiwer: `pip install jiwer`.") from error
    return jiwer


def timestamp_score(references: Sequence[str], hypotheses: Sequence[str]) -> Score:
    """
    How far timestamps are off, for answers in a format that [`~moss_audio.parse_transcript`] reads.

    The words of reference and answer are aligned. A segment's start is matched where its first word is aligned with the
    same word, and that one opens a segment, too; so is its end, by its last word.

    Returns:
        `aas_ms`: mean absolute deviation of the matched timestamps, in milliseconds; `aas_median_ms`; `matched`: their
        share of the reference's; `wer`: of the words. A sample is wrong where a word is wrong, a timestamp is not
        matched, or one is further off than 200 ms.
    """
    pairs = [
        (parse_transcript(reference), parse_transcript(answer)) for reference, answer in zip(references, hypotheses)
    ]
    deviations, expected, wrong = [], 0, []
    for known, found in pairs:
        count = sum(time is not None for segment in known for time in (segment.start, segment.end))
        matched = _matched_deviations(known, found)
        deviations += matched
        expected += count
        late = len(matched) < count or any(map(_late, matched))
        wrong.append(late or words_of(known.text) != words_of(found.text))
    words = word_error_rate([known.text for known, _ in pairs], [found.text for _, found in pairs])
    figures = {**_deviation_figures(deviations), "matched": len(deviations) / expected if expected else None}
    return Score({**figures, **words.figures}, wrong)


def _matched_deviations(reference: Transcript, hypothesis: Transcript) -> list[float]:
    from rapidfuzz.distance import Levenshtein  # jiwer brings it along

    words, edges = zip(*(_words_and_edges(transcript) for transcript in (reference, hypothesis)))
    deviations = []
    for block in Levenshtein.opcodes(*words):
        if block.tag != "equal":
            continue
        for here, there in zip(range(block.src_start, block.src_end), range(block.dest_start, block.dest_end)):
            pairs = zip(edges[0][here], edges[1][there])
            deviations += [abs(known - found) for known, found in pairs if known is not None and found is not None]
    return deviations


def _words_and_edges(transcript: Transcript) -> tuple[list[str], list[list[Any]]]:
    """All words, and for each the times that it opens and closes a segment at, None where it does not."""
    words, edges = [], []
    for segment in transcript:
        own = words_of(segment.text) or segment.text.split()  # a note of music has its times, too
        words += own
        times = [[None, None] for _ in own]
        if own:
            times[0][0], times[-1][1] = segment.start, segment.end
        edges += times
    return words, edges


def _deviation_figures(deviations: list[float]) -> dict[str, Any]:
    if not deviations:
        return {"aas_ms": None, "aas_median_ms": None}
    ordered = sorted(deviations)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return {"aas_ms": 1000 * sum(ordered) / len(ordered), "aas_median_ms": 1000 * middle}


def _late(deviation: float) -> bool:
    return deviation > TIME_COLLAR + 1e-9  # 0.2 is no sum of powers of two


def exact_match(references: Sequence[str], hypotheses: Sequence[str]) -> Score:
    """Share of answers that are the reference, case and punctuation aside."""
    wrong = [normalised(known) != normalised(found) for known, found in zip(references, hypotheses)]
    return Score({"accuracy": _share_right(wrong)}, wrong)


def chosen_letters(references: Sequence[str], hypotheses: Sequence[str]) -> Score:
    """Share of answers to multiple choice that choose the reference's letter, as [`~moss_audio.chosen_letter`] reads it."""
    chosen = [[chosen_letter(text) or normalised(text) for text in texts] for texts in (references, hypotheses)]
    wrong = [known != found for known, found in zip(*chosen)]
    return Score({"accuracy": _share_right(wrong)}, wrong)


def time_answers(references: Sequence[str], hypotheses: Sequence[str]) -> Score:
    """
    Answers that tell times in seconds: right where all else is the reference and no number is more than 200 ms off.

    Returns:
        `accuracy`; `aas_ms` and `aas_median_ms` over the answers that have as many numbers as their reference.
    """
    deviations, wrong = [], []
    for known, found in zip(references, hypotheses):
        numbers = [[float(number) for number in _NUMBER.findall(text)] for text in (known, found)]
        off = [abs(one - other) for one, other in zip(*numbers)] if len(numbers[0]) == len(numbers[1]) else []
        deviations += off
        texts = [normalised(_NUMBER.sub("#", text).replace("#", " number ")) for text in (known, found)]
        wrong.append(texts[0] != texts[1] or len(off) < len(numbers[0]) or any(map(_late, off)))
    return Score({"accuracy": _share_right(wrong), **_deviation_figures(deviations)}, wrong)


def event_f1(references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]) -> Score:
    """
    Events named in the right order: precision and recall count the longest common subsequence of the labels, over all
    samples together.
    """
    from rapidfuzz.distance import LCSseq

    common = sum(LCSseq.similarity(list(known), list(found)) for known, found in zip(references, hypotheses))
    named, there = sum(map(len, hypotheses)), sum(map(len, references))
    wrong = [list(known) != list(found) for known, found in zip(references, hypotheses)]
    figures = {
        "event_f1": 2 * common / (named + there) if named + there else None,
        "event_precision": common / named if named else None,
        "event_recall": common / there if there else None,
    }
    return Score(figures, wrong)


def find_events(text: str, labels: Sequence[str]) -> list[str]:
    """The labels that a text names, in order; the longer one where two begin at one place."""
    ordered = sorted(filter(None, labels), key=len, reverse=True)
    pattern = re.compile("|".join(map(_as_words, ordered)))
    return [ordered[match.lastindex - 1] for match in pattern.finditer(text.lower())] if ordered else []


def _as_words(label: str) -> str:
    """A pattern for a label by itself, one or several; where spaces part words, it is no part of another word."""
    before = f"(?<!{_SPACED.pattern})" if _SPACED.match(label[0]) else ""
    after = f"s?(?!{_SPACED.pattern})" if _SPACED.match(label[-1]) else ""
    return f"{before}({re.escape(label.lower())}){after}"


def _share_right(wrong: list[bool]) -> Any:
    return 1 - sum(wrong) / len(wrong) if wrong else None
