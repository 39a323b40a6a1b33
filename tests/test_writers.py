"""Results as files, read back by the readers of others."""

import csv
import html
import io
import json
import logging
import os
import re
import sys

import pysubs2
import pytest
import srt
import webvtt
from hypothesis import given, settings
from hypothesis import strategies as st

from moss_audio import Segment, format_transcript, parse_transcript
from moss_audio.writers import (
    FORMATS,
    MAX_SECONDS,
    READING_SPEED,
    complete,
    read_results,
    render,
    subtitle_cues,
    width,
    write,
)
from tests.conftest import run_python


MEETING = (
    "[0.00][S01]Good morning, everybody, and thank you very much for coming to this meeting today, which will be rather "
    "long. We have three points: the budget, the new building, and whatever you bring up at the end.[14.20][14.50][S02]"
    "Okay & <b>fine</b>, C:\\new {\\an8} --> go.[16.90][17.00][S03]今天天气很好，我们一起去公园散步吧。"
    "明天可能会下雨，所以最好今天去，你觉得怎么样呢？[24.00]"
)
RESULT = {
    "audio": "folder/a meeting.wav",
    "duration": 25.0,
    "model": "m",
    "generated_text": MEETING,
    "reasoning": None,
}
WORDS = "the quick brown fox jumps over the lazy dog and goes home to sleep. In the morning it wakes up".split()


def spoken(segments) -> str:
    return " ".join(" ".join(segment.text for segment in segments).split())


def words_of(cues) -> str:
    return " ".join(line for cue in cues for line in cue.lines)


# ----------------------------------------------------------------------------------------------------------- subtitles


def test_cues_are_short_and_cut_where_clauses_end():
    cues = subtitle_cues(parse_transcript(MEETING))
    assert [cue.lines for cue in cues] == [
        ("Good morning, everybody, and thank", "you very much for coming to this"),
        ("meeting today, which will be", "rather long. We have three points:"),
        ("the budget, the new building,", "and whatever you bring up at the end."),
        ("Okay & <b>fine</b>, C:\\new {\\an8} --> go.",),
        ("今天天气很好，我们一起去公园散步吧。明天可", "能会下雨，所以最好今天去，你觉得怎么样呢？"),
    ]
    for cue in cues:
        assert 1 <= len(cue.lines) <= 2 and all(width(line) <= 42 for line in cue.lines)
        assert 0.1 <= cue.end - cue.start <= MAX_SECONDS
    assert [cue.speaker for cue in cues] == ["S01", "S01", "S01", "S02", "S03"]
    assert cues[2].end == 14.2 and cues[0].start == 0.0  # the answer's own times at the ends


def test_a_line_break_stands_after_a_clause_and_no_line_begins_with_punctuation():
    (cue,) = subtitle_cues([Segment(0, 6, "He went to the market, and she went home again alone.")])
    assert cue.lines == ("He went to the market,", "and she went home again alone.")
    (cue,) = subtitle_cues([Segment(0, 6, "字" * 21 + "，" + "字" * 19)])
    assert cue.lines == ("字" * 20, "字，" + "字" * 19)
    (cue,) = subtitle_cues([Segment(0, 6, "字" * 20 + "“" + "字" * 20)])
    assert cue.lines == ("字" * 20, "“" + "字" * 20)


def test_words_become_lines_with_their_own_times():
    segments = [Segment(0.3 * i, 0.3 * i + 0.25, word) for i, word in enumerate(WORDS)]
    cues = subtitle_cues(segments)
    assert words_of(cues) == " ".join(WORDS)
    assert cues[0].start == 0.0 and cues[-1].lines == ("In the morning it wakes up",)
    assert cues[-1].start == pytest.approx(0.3 * WORDS.index("In"))
    chinese = [Segment(0.2 * i, 0.2 * i + 0.2, char) for i, char in enumerate("今天天气很好")]
    assert [cue.lines for cue in subtitle_cues(chinese)] == [("今天天气很好",)]
    paused = [*segments[:4], *(segment.shifted(5) for segment in segments[4:8])]
    assert [" ".join(cue.lines) for cue in subtitle_cues(paused)] == ["the quick brown fox", "jumps over the lazy"]


def test_a_cue_stays_long_enough_to_be_read_and_no_longer_than_the_next_allows():
    short, next_one = subtitle_cues([Segment(0, 0.2, "A short one with much to read"), Segment(1.1, 1.1, "Next")])
    assert (short.start, short.end) == (0, 1.1) and next_one.end - next_one.start == 1.0
    (alone,) = subtitle_cues([Segment(0, 0.2, "A short one with much to read")])
    assert alone.end == pytest.approx(29 / READING_SPEED)
    (slow,) = subtitle_cues([Segment(0, 30, "Hello there.")])
    assert slow.lines == ("Hello there.",) and slow.end == MAX_SECONDS
    both = subtitle_cues([Segment(2, 2, "a", "S01"), Segment(2, 2, "b", "S02")])
    assert all(cue.end - cue.start >= 0.1 for cue in both)


def test_a_missing_end_or_start_is_filled_for_the_screen():
    cues = subtitle_cues([Segment(1, None, "a b c"), Segment(1.5, None, "d " * 40), Segment(None, 20, "e")])
    assert (cues[0].start, cues[0].end) == (1, 1.5)
    assert cues[1].start == 1.5 and cues[-1].lines == ("e",) and cues[-1].end == 20


TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp", "Mn", "Mc", "Cf"]),
    min_size=1,
    max_size=60,
)
WORDY = st.lists(
    TEXT | st.sampled_from(["hello", "今天天气很好。", "no,", "(a", "end.", "-->", "สวัสดี", "<i>"]),
    min_size=1,
    max_size=30,
)
TIMED = st.builds(
    lambda start, length, words, speaker: Segment(start / 100, (start + length) / 100, " ".join(words), speaker),
    st.integers(0, 100_000),
    st.integers(0, 3000),
    WORDY,
    st.sampled_from([None, "S01", "S02"]),
)


@given(st.lists(TIMED, max_size=6), st.integers(10, 50), st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_any_cues_keep_the_text_and_the_limits(segments, line_width, max_lines):
    cues = subtitle_cues(segments, line_width, max_lines)
    wanted = spoken(sorted(segments, key=lambda segment: segment.start))
    key = str.maketrans("", "", " ")
    assert sorted(words_of(cues).translate(key)) == sorted(wanted.translate(key))
    assert [cue.start for cue in cues] == sorted(cue.start for cue in cues)
    for cue in cues:
        assert len(cue.lines) <= max_lines and all(width(line) <= line_width for line in cue.lines)
        assert all(line and line == line.strip() for line in cue.lines)
        assert 0.0999 <= cue.end - cue.start <= MAX_SECONDS + 1e-6


@given(st.lists(TIMED, max_size=4))
@settings(deadline=None, max_examples=40)
def test_subtitles_are_read_back_by_others(segments):
    result = {"segments": segments}
    cues = subtitle_cues(segments)
    vtt = list(webvtt.from_string(render(result, "vtt")))
    assert [html.unescape(caption.text) for caption in vtt] == ["\n".join(cue.lines) for cue in cues]
    assert [caption.voice for caption in vtt] == [cue.speaker for cue in cues]
    labelled = subtitle_cues(segments, labels=True)
    found = list(srt.parse(render(result, "srt")))
    assert [item.content for item in found] == ["\n".join(cue.lines).replace("-->", "→") for cue in labelled]
    assert [item.start.total_seconds() for item in found] == pytest.approx([cue.start for cue in labelled], abs=6e-4)
    assert [item.end.total_seconds() for item in found] == pytest.approx([cue.end for cue in labelled], abs=6e-4)


def test_srt_and_vtt_to_the_letter():
    result = {
        "segments": [Segment(0, 2.5, "Hello & <hi> {\\an8} C:\\new", "S01"), Segment(3661.5, 3663, "Bye", "S01")]
    }
    assert render(result, "srt") == (
        "1\n00:00:00,000 --> 00:00:02,500\n[S01] Hello & <hi> {\\an8} C:\\new\n\n"
        "2\n01:01:01,500 --> 01:01:03,000\nBye\n"
    )
    assert render(result, "vtt") == (
        "WEBVTT\n\n1\n00:00:00.000 --> 00:00:02.500\n<v S01>Hello &amp; &lt;hi&gt; {\\an8} C:\\new\n\n"
        "2\n01:01:01.500 --> 01:01:03.000\n<v S01>Bye\n"
    )
    strange = {"segments": [Segment(0, 1, "a", "S <1>\n-->")]}
    assert "<v S &lt;1&gt; --&gt;>a" in render(strange, "vtt")


@pytest.mark.parametrize("format", ["srt", "vtt"])
def test_pysubs2_reads_them(format, tmp_path):
    read = pysubs2.load(str(write(RESULT, tmp_path / f"a.{format}")))
    assert len(read) >= 5 and read[0].start == 0
    assert all(event.end > event.start for event in read)


def test_no_speech_is_an_empty_file():
    result = {"generated_text": "", "segments": []}
    assert render(result, "srt") == "" and render(result, "vtt") == "WEBVTT\n" and render(result, "rttm") == ""
    assert list(webvtt.from_string(render(result, "vtt"))) == []


@pytest.mark.parametrize("format", ["srt", "vtt", "rttm"])
def test_without_times_there_are_no_subtitles(format, caplog):
    with pytest.raises(ValueError, match=f"{format} needs times, and none of the 2 segments has any"):
        render({"generated_text": "Plain text.\nIn two lines."}, format)
    mixed = {"generated_text": "Here:\n[0.00]hello[1.00]\nthat is it"}
    with caplog.at_level(logging.WARNING):
        assert ("hello" in render(mixed, format)) is (format != "rttm")
    assert f"{format} leaves out 2 segments without times; the first is 'Here:'" in caplog.text


@pytest.mark.parametrize(
    "options, message",
    [({"line_width": 3}, "line_width"), ({"max_lines": 0}, "max_lines"), ({"max_seconds": 0}, "max_s")],
)
def test_limits_that_cannot_be_kept(options, message):
    with pytest.raises(ValueError, match=message):
        render(RESULT, "srt", **options)


def test_pysubs2_is_asked_for_by_name(tmp_path):
    code = (
        "from moss_audio.writers import render\n"
        "print(len(render({'generated_text': '[0.00]a[1.00]'}, 'tsv')))\n"
        "try:\n    render({'generated_text': '[0.00]a[1.00]'}, 'srt')\n"
        "except ImportError as error:\n    print(error)\n"
    )
    assert "`pip install pysubs2`" in run_python(code, cwd=tmp_path, blocked=("pysubs2",))


# ---------------------------------------------------------------------------------------------------- the other formats


def test_rttm_has_the_columns_of_diarization_tools():
    rows = [line.split(" ") for line in render(RESULT, "rttm").splitlines()]
    assert all(len(row) == 10 and row[0] == "SPEAKER" and row[1] == "a_meeting" and row[2] == "1" for row in rows)
    turns = [(float(row[3]), float(row[3]) + float(row[4]), row[7]) for row in rows]
    segments = parse_transcript(MEETING)
    assert turns == [(pytest.approx(s.start), pytest.approx(s.end), s.speaker) for s in segments]
    odd = {"audio": "x", "segments": [Segment(2, 3, "b"), Segment(0, 1, "a", "Speaker 1")]}
    assert render(odd, "rttm").splitlines() == [
        "SPEAKER x 1 0.000 1.000 <NA> <NA> Speaker_1 <NA> <NA>",
        "SPEAKER x 1 2.000 1.000 <NA> <NA> <NA> <NA> <NA>",
    ]


@given(
    st.lists(
        st.builds(Segment, st.none() | st.just(1.5), st.none() | st.just(2.0), st.text(), st.none() | st.just("S01"))
    )
)
@settings(deadline=None)
def test_tsv_and_json_are_read_back(segments):
    rows = list(csv.DictReader(io.StringIO(render({"segments": segments}, "tsv"), newline=""), delimiter="\t"))
    assert [row["text"] for row in rows] == [re.sub("[\t\r\n]+", " ", segment.text) for segment in segments]
    assert [row["start"] for row in rows] == ["" if segment.start is None else "1.500" for segment in segments]
    assert [row["speaker"] for row in rows] == [segment.speaker or "" for segment in segments]
    data = json.loads(render({"segments": segments}, "json"))
    assert [Segment.from_dict(item) for item in data["segments"]] == segments


def test_txt():
    assert render(RESULT, "txt").splitlines()[1] == "[S02] Okay & <b>fine</b>, C:\\new {\\an8} --> go."
    turns = {"segments": [Segment(0, 1, "Hello.", "S01"), Segment(1, 2, "Again.", "S01"), Segment(2, 3, "Hi.", "S02")]}
    assert render(turns, "txt") == "[S01] Hello. Again.\n[S02] Hi.\n"
    words = [Segment(i, i + 1, word) for i, word in enumerate(WORDS)]
    assert render({"segments": words}, "txt") == " ".join(WORDS) + "\n"
    assert render({"generated_text": "[0.00]One.[1.00][1.00]Two.[2.00]"}, "txt") == "One.\nTwo.\n"
    assert render({"generated_text": "A dog barks.\nTwice."}, "txt") == "A dog barks.\nTwice.\n"


def test_json_has_all_keys_and_keeps_others():
    data = json.loads(render({**RESULT, "task": "transcribe"}, "json"))
    assert list(data) == [
        "audio", "duration", "model", "generated_text", "reasoning", "segments", "repairs", "task",
    ]  # fmt: skip
    assert data["segments"][1]["speaker"] == "S02" and data["repairs"] == [] and data["task"] == "transcribe"
    assert complete(data) == data
    scored = complete({"segments": [Segment(0, 1, "a", None, -0.5, -1.0)]})
    assert scored["segments"] == [
        {"start": 0, "end": 1, "text": "a", "speaker": None, "logprob_mean": -0.5, "logprob_min": -1.0}
    ]
    assert scored["generated_text"] == "a"


@pytest.mark.parametrize(
    "result, message",
    [
        ([], "expected a dict"),
        ({"audio": "a"}, "needs `generated_text` or `segments`"),
        ({"audio": "a.wav", "error": "no sound"}, "the result for a.wav is an error: no sound"),
        ({"segments": [{"start": 1}]}, "it needs a `text`"),
    ],
)
def test_what_is_no_result(result, message):
    with pytest.raises(ValueError, match=message):
        complete(result)


def test_files_of_results(tmp_path):
    path = write(RESULT, tmp_path / "one.json")
    assert read_results(path) == [complete(RESULT)]
    lines = [{"audio": "a.wav", "generated_text": "x", "reasoning": None}, {"audio": "b.wav", "error": "no sound"}]
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    (tmp_path / "array.json").write_text("\ufeff" + json.dumps(lines), encoding="utf-8")
    for name in ("lines.jsonl", "array.json"):
        assert [item["generated_text"] for item in read_results(tmp_path / name)] == ["x"]
    (tmp_path / "bad.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="bad.json is neither JSON nor has it an object on each line"):
        read_results(tmp_path / "bad.json")


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_is_utf8_with_line_feeds(format, tmp_path):
    path = write(RESULT, tmp_path / "new" / f"out.{format}")
    content = path.read_bytes()
    assert b"\r" not in content and content.endswith(b"\n") and content.decode("utf-8") == render(RESULT, format)
    assert os.listdir(path.parent) == [path.name]
    if sys.platform != "win32":
        assert path.stat().st_mode & 0o777 == (tmp_path / "new" / path.name).parent.stat().st_mode & 0o666


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.srt"
    path.write_text("before")
    with pytest.raises(ValueError, match="needs times"):
        write({"generated_text": "x"}, path)
    with pytest.raises(ValueError, match="`format` is 'doc'; it must be one of srt, vtt, rttm, json, tsv, txt"):
        write(RESULT, tmp_path / "a.doc")
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(RESULT, path)
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["a.srt"]


def test_what_was_written_in_the_released_format_comes_out_of_json(tmp_path):
    data = json.loads(write(RESULT, tmp_path / "a.json").read_text(encoding="utf-8"))
    assert format_transcript(map(Segment.from_dict, data["segments"])) == MEETING
