"""Answers to segments, reasoning and JSON: the released formats, what goes wrong in them, and any text at all."""

import json
import re
import string
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import moss_audio
from moss_audio import (
    Segment,
    Transcript,
    TranscriptParser,
    format_transcript,
    parse_json,
    parse_transcript,
    split_reasoning,
)
from moss_audio.benchmarks import parsing
from moss_audio.transcripts_moss_audio import REPAIRS, join_texts


def read(text: str) -> list[tuple]:
    """Segments as tuples, without a speaker where there is none."""
    return [(s.start, s.end, s.text) + ((s.speaker,) if s.speaker else ()) for s in parse_transcript(text)]


def kinds(text: str) -> list[str]:
    return [repair.kind for repair in parse_transcript(text).repairs]


CLEAN = {
    "[0.00]hello there[2.01][2.01]the weather is nice today[4.32]": [
        (0.0, 2.01, "hello there"),
        (2.01, 4.32, "the weather is nice today"),
    ],
    "[0.00]hello[0.31] [0.40]there[0.55]\n[0.60]you[0.70]": [
        (0.0, 0.31, "hello"),
        (0.4, 0.55, "there"),
        (0.6, 0.7, "you"),
    ],
    "[0.00][S01]Hello.[7.56][7.60][S02] Hi. [9.00]": [(0.0, 7.56, "Hello.", "S01"), (7.6, 9.0, "Hi.", "S02")],
    "[S01][0.00]Hello.[7.56]": [(0.0, 7.56, "Hello.", "S01")],
    "[00:01]a[00:02.5][00:02.50]b[01:02:03,250]": [(1.0, 2.5, "a"), (2.5, 3723.25, "b")],
    "[0]a[2][2]b[3]": [(0.0, 2.0, "a"), (2.0, 3.0, "b")],
    "[0s]a[2.5s]": [(0.0, 2.5, "a")],
    "【０．００】你好［2.01］[ 2.01 ]再见【00：05】": [(0.0, 2.01, "你好"), (2.01, 5.0, "再见")],
    "［0.00］［S01］好［1.00］": [(0.0, 1.0, "好", "S01")],
    "<think>\n[9.00]hm[9.50]\n</think>\n\n[0.00]a[1.00]": [(0.0, 1.0, "a")],
    "[9.00]hm[9.50]\n</think>\n\n[0.00]a[1.00]": [(0.0, 1.0, "a")],
    "[0.00]two\nlines[1.00]": [(0.0, 1.0, "two\nlines")],
    "No times at all.": [(None, None, "No times at all.")],
    "One line.\n\nAnother, with [laughter] and [5].": [
        (None, None, "One line."),
        (None, None, "Another, with [laughter] and [5]."),
    ],
    "[S01] Hello\nyou. [S02] Hi.": [(None, None, "Hello\nyou.", "S01"), (None, None, "Hi.", "S02")],
    "[1] First\n[2] Second": [(None, None, "[1] First"), (None, None, "[2] Second")],
    "[0.00]in [S3] [buckets], [1,234] of [12] [-1.00] [00:75] [1.2.3] [][[1.00]": [
        (0.0, None, "in"),
        (None, 1.0, "[buckets], [1,234] of [12] [-1.00] [00:75] [1.2.3] [][", "S3"),
    ],
    "": [],
    " \n ": [],
}


@pytest.mark.parametrize("text", [text for text in CLEAN if "[S3]" not in text])
def test_what_follows_a_format_needs_no_repair(text):
    assert read(text) == CLEAN[text] and kinds(text) == []


def test_other_brackets_are_text():
    text = next(text for text in CLEAN if "[S3]" in text)
    assert read(text) == CLEAN[text] and kinds(text) == ["no_end", "no_start"]


BROKEN = {
    "cut off": ("[0.00]a[2.00][2.00]the wea", [(0.0, 2.0, "a"), (2.0, None, "the wea")], ["no_end"]),
    "cut off in a time": ("[0.00]a[2.00][2.00]b[3.", [(0.0, 2.0, "a"), (2.0, None, "b")], ["cut_off", "no_end"]),
    "cut off in a label": ("[0.00]a[2.00][2.00][S0", [(0.0, 2.0, "a")], ["cut_off", "empty"]),
    "cut off after a time": ("[0.00]a[2.00][2.00]", [(0.0, 2.0, "a")], ["empty"]),
    "cut off in reasoning": ("<think>[0.00]a[2.00", [], ["cut_off"]),
    "a bracket at the end": ("[0.00]a[", [(0.0, None, "a[")], ["no_end"]),
    "out of order": ("[3.00]b[4.00][1.00]a[2.00]", [(3.0, 4.0, "b"), (1.0, 2.0, "a")], ["out_of_order"]),
    "overlap": ("[1.00]a[4.00][3.00]b[5.00]", [(1.0, 4.0, "a"), (3.0, 5.0, "b")], ["overlap"]),
    "two at once": (
        "[1.00][S01]a[4.00][3.00][S02]b[5.00][3.50][S01]c[6.00]",
        [(1.0, 4.0, "a", "S01"), (3.0, 5.0, "b", "S02"), (3.5, 6.0, "c", "S01")],
        ["overlap"],
    ),
    "reversed": ("[5.00]a[3.00]", [(5.0, None, "a")], ["reversed"]),
    "shared": ("[0.00]a[1.00]b[2.00]", [(0.0, 1.0, "a"), (1.0, 2.0, "b")], ["shared_time"]),
    "shared, spaced": ("[0.00] a [1.00] b [2.00]", [(0.0, 1.0, "a"), (1.0, 2.0, "b")], ["shared_time"]),
    "shared, with a label": (
        "[0.00][S01]a[1.00][S02]b[2.00]",
        [(0.0, 1.0, "a", "S01"), (1.0, 2.0, "b", "S02")],
        ["shared_time"],
    ),
    "starts alone": ("[00:12] a\n[00:15] b", [(12.0, None, "a"), (15.0, None, "b")], ["no_end", "no_end"]),
    "ends alone": (
        "a [0:12]\nb [0:15]\nc",
        [(None, 12.0, "a"), (None, 15.0, "b"), (None, None, "c")],
        ["no_start", "no_start", "outside"],
    ),
    "remarks": (
        "Here you are:\n[0.00]a[1.00] well [2.00]b[3.00]\nDone.\nBye.",
        [
            (None, None, "Here you are:"),
            (0.0, 1.0, "a"),
            (None, None, "well"),
            (2.0, 3.0, "b"),
            (None, None, "Done."),
            (None, None, "Bye."),
        ],
        ["outside"] * 4,
    ),
    "a remark that touches": ("Here:[0.00] a[1.00]", [(None, None, "Here:"), (0.0, 1.0, "a")], ["outside"]),
    "a paragraph": ("[0.00]a\n \nb[1.00]", [(0.0, None, "a"), (None, 1.0, "b")], ["no_end", "no_start"]),
    "no first time": ("a[2.00][2.00]b[3.00]", [(None, 2.0, "a"), (2.0, 3.0, "b")], ["no_start"]),
    "no text": ("[0.00][2.00][2.00]a[3.00]", [(2.0, 3.0, "a")], ["empty", "empty"]),
    "a label without text": ("[0.00][S01][2.00][2.00]a[3.00]", [(2.0, 3.0, "a")], ["empty", "empty"]),
    "two labels": ("[0.00][S01][S02]a[3.00]", [(0.0, 3.0, "a", "S02")], ["empty"]),
    "a change of speaker": (
        "[0.00][S01]a[S02]b[3.00]",
        [(0.0, None, "a", "S01"), (None, 3.0, "b", "S02")],
        ["no_end", "no_start"],
    ),
    "reasoning in between": (
        "[0.00]a<think>x[0.50]</think>b[1.00]",
        [(0.0, None, "a"), (None, 1.0, "b")],
        ["no_end", "no_start"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_is_read_as_far_as_it_goes(name):
    text, segments, repairs = BROKEN[name]
    assert read(text) == segments and kinds(text) == repairs


def test_a_repair_says_what_and_where():
    (repair,) = parse_transcript("[0.00]fine[1.00][5.00]" + "long " * 20 + "[3.00]").repairs
    assert repair.kind in REPAIRS and repair.position == 122
    assert repair.message == "'long long long long long long…' starts at [5.00] and ends at [3.00]"


# ------------------------------------------------------------------------------------------------------- any text at all

TAGS = st.sampled_from(
    "[0.00] [1.50] [2.00] [00:02] [1:00:00.5] [S01] [S02] [ 3.00 ] 【4.00】 ［S03］ [5] [0] <think> </think>".split()
)
PIECES = st.sampled_from(
    ["a", "hello", " ", "\n", "\n\n", "[", "]", "<", "[3.", "[S", "你好", "。", "5", "[x]", "</th"]
)
ANSWERS = st.lists(TAGS | PIECES | st.text(max_size=5), max_size=25).map("".join)
A_TAG = r"[\[［【] *(?:[\d:：.．,]+ ?s?|[Ss]\d+) *[\]］】]"


@given(ANSWERS)
@example("[0.00]a[1.00][2.")
@settings(deadline=None)
def test_no_character_is_lost_and_no_time_made_up(text):
    transcript = parse_transcript(text)
    position, outside = 0, []
    for segment in transcript:
        start, end = segment.span
        assert text[start:end] == segment.text == segment.text.strip() != ""
        assert position <= start
        outside.append(text[position:start])
        position = end
    rest = "".join(outside) + text[position:]
    if "think>" not in text:
        if any(repair.kind == "cut_off" for repair in transcript.repairs):
            rest = re.sub(r"[\[［【] ?[\dSs][\d:：.．, Ss]*\Z", "", rest)
        assert re.sub(A_TAG, "", rest).strip() == ""
    times = {match[1]: parse_transcript(f"{match[0]}x").segments[0].start for match in re.finditer(f"({A_TAG})", text)}
    for segment in transcript:
        assert {segment.start, segment.end} - {None} <= set(times.values())
        assert segment.start is None or segment.end is None or segment.start <= segment.end
        assert segment.speaker is None or f"{segment.speaker}" in text
    assert {repair.kind for repair in transcript.repairs} <= set(REPAIRS)


@given(st.text())
@settings(deadline=None)
def test_any_text_parses(text):
    assert isinstance(parse_transcript(text).text, str)
    parse_json(text)
    split_reasoning(text)


@given(ANSWERS, st.lists(st.integers(1, 12), min_size=1))
@example("[0.00] a [1.00] b [2.00]", [1])
@example(" [5]x[6]", [1])
@settings(deadline=None)
def test_a_stream_gives_the_transcript_of_the_whole(text, sizes):
    parser, segments, position, turn = TranscriptParser(), [], 0, 0
    while position < len(text):
        size = sizes[turn % len(sizes)]
        segments += parser.feed(text[position : position + size])
        position, turn = position + size, turn + 1
    segments += parser.close()
    assert parser.transcript == parse_transcript(text)
    if not (0 <= text.find("</think>") < text.find("<think>") or "</think>" in text and "<think>" not in text):
        assert segments == parser.transcript.segments


@given(ANSWERS)
@example("[0.00][3.\n")
@settings(deadline=None)
def test_reasoning_is_the_same_for_both(text):
    text = text.rstrip()  # as the answer is; what is cut off at its end is no longer once a blank follows
    reasoning, answer = split_reasoning(text)
    if text.find("<think>") <= 0 and "think>" not in answer:
        inside, alone = parse_transcript(text), parse_transcript(answer)
        assert [(s.start, s.end, s.text) for s in inside] == [(s.start, s.end, s.text) for s in alone]


def test_a_segment_comes_with_its_last_character():
    parser = TranscriptParser()
    arrived = {}
    text = "<think>\nhm\n</think>\n\n[0.00][S01]Hello.[7.56][7.60][S02]Hi."
    for index, character in enumerate(text):
        for segment in parser.feed(character):
            arrived[segment.text] = text[: index + 1]
    assert arrived == {"Hello.": "<think>\nhm\n</think>\n\n[0.00][S01]Hello.[7.56]"}
    assert [segment.text for segment in parser.close()] == ["Hi."]


def test_a_stream_whose_prompt_opened_the_reasoning():
    parser = TranscriptParser(reasoning_open=True)
    assert parser.feed("[1.00]hm[2.00]</thi") == []
    assert [segment.text for segment in parser.feed("nk>\n[0.00]a[1.00]")] == ["a"]
    assert [segment.text for segment in parser.feed("[1.00]</think>[2.00]")] == ["</think>"]


@pytest.mark.parametrize("piece", parsing.PIECES)
def test_a_long_text_of_one_piece_is_parsed_to_its_end(piece):
    """How long that takes is measured by `moss_audio.benchmarks.parsing`."""
    text = piece * (100_000 // len(piece))
    transcript = parse_transcript(text)
    segments, letters = list(transcript), text.count("a")
    if piece == "[0.00]a[1.00]":
        assert len(segments) == letters and {segment.text for segment in segments} == {"a"}
    elif piece == "a\n":
        assert sum(segment.text.count("a") for segment in segments) == letters
    parse_json(text)


# -------------------------------------------------------------------------------------------------------- there and back

TEXTS = st.text(st.characters(exclude_characters="[［【<\r\n", exclude_categories=["Cs"]), max_size=20).filter(
    str.strip
)
SPAN = st.lists(st.integers(0, 999_999_99), min_size=2, max_size=2).map(lambda t: [x / 100 for x in sorted(t)])
TIMES = st.tuples(st.booleans(), st.booleans(), SPAN).map(
    lambda t: (t[2][0] if t[0] else None, t[2][1] if t[1] else None)
)
SEGMENTS = st.builds(
    lambda times, text, speaker: Segment(*times, text.strip(), speaker),
    TIMES,
    TEXTS,
    st.sampled_from([None, "S01", "S02", "S10"]),
)


@given(st.lists(SEGMENTS))
@settings(deadline=None)
def test_any_segments_survive(segments):
    text = format_transcript(segments)
    again = parse_transcript(text)
    assert [(s.start, s.end, s.text, s.speaker) for s in again] == [
        (s.start, s.end, s.text, s.speaker) for s in segments
    ]
    assert format_transcript(again) == text


@given(st.lists(st.builds(Segment, st.just(1.0), st.just(2.0), ANSWERS), max_size=3))
@settings(deadline=None)
def test_what_would_not_survive_is_refused(segments):
    try:
        text = format_transcript(segments)
    except ValueError:
        return
    assert [s.text for s in parse_transcript(text)] == [
        " ".join(re.split(r"\s*[\r\n]\s*", s.text.strip())) for s in segments
    ]


def test_the_released_formats_are_written_to_the_letter():
    assert format_transcript(parse_transcript("[0.00]hello there[2.01][2.01]the weather is nice today[4.32]")) == (
        "[0.00]hello there[2.01][2.01]the weather is nice today[4.32]"
    )
    assert format_transcript([Segment(0, 7.558, " Hello. ", "S01")]) == "[0.00][S01]Hello.[7.56]"
    assert format_transcript([Segment(-0.0, 100.5, "two\nlines")]) == "[0.00]two lines[100.50]"
    assert format_transcript([]) == ""


@pytest.mark.parametrize(
    "segment, message",
    [
        (Segment(-1.0, 2.0, "a"), "`start` of segment 1 is -1.0"),
        (Segment(0.0, float("nan"), "a"), "`end` of segment 1 is nan"),
        (Segment(3.0, 2.0, "a"), "an end that is not before its start"),
        (Segment(0.0, 1.0, " "), "segment 1 .* needs a text"),
        (Segment(0.0, 1.0, "a[0.50]b"), "without timestamps"),
        (Segment(0.0, 1.0, "a", "Anna"), "a speaker like 'S01'"),
        (Segment(0.0, None, "a[0."), "cannot be written"),
        (Segment(0.0, 1.0, "a <think> b"), "<think> in it"),
    ],
)
def test_what_cannot_be_written_is_named(segment, message):
    with pytest.raises(ValueError, match=message):
        format_transcript([Segment(0.0, 1.0, "fine"), segment])


def test_dicts_and_shifts():
    transcript = parse_transcript("[0.00][S01]a[1.00] b [3.00]c[2.00]")
    data = json.loads(json.dumps(transcript.to_dict()))
    assert data["segments"][0] == {"start": 0.0, "end": 1.0, "text": "a", "speaker": "S01", "span": [11, 12]}
    assert data["text"] == "a b c" and data["repairs"][0] == {
        "kind": "outside",
        "message": "'b' stands outside of timestamps",
        "position": 19,
    }
    assert Transcript.from_dict(data) == transcript
    later = transcript.shifted(600.5)
    assert [(s.start, s.end) for s in later] == [(600.5, 601.5), (None, None), (603.5, None)]
    assert transcript[0].start == 0.0 and later[0].span == (11, 12) and later.repairs == transcript.repairs
    assert len(transcript) == 3 and transcript[1:] == transcript.segments[1:]
    scored = Segment(0.0, None, "x", None, -0.5, -2.0)
    assert Segment.from_dict(scored.to_dict()) == scored
    assert Segment.from_dict({"text": "x", "words": []}) == Segment(None, None, "x")


@pytest.mark.parametrize(
    "data, message",
    [
        ({"segments": 1}, "no list `segments`"),
        ({"text": "a"}, "no list `segments`"),
        ({"segments": ["a"]}, "a segment is 'a'; it needs a `text`"),
        ({"segments": [{"text": "a", "start": "0"}]}, "`start` of segment 'a' is '0'"),
        ({"segments": [{"text": "a", "end": float("inf")}]}, "`end` of segment 'a' is inf"),
        ({"segments": [{"text": "a", "span": 5}]}, "`span` of segment 'a' is 5"),
        ({"segments": [{"text": "a", "speaker": 5}]}, "`speaker` of segment 'a' is 5"),
        ({"segments": [], "repairs": ["x"]}, "a repair is 'x'"),
    ],
)
def test_dicts_that_are_no_transcripts(data, message):
    with pytest.raises(ValueError, match=message):
        Transcript.from_dict(data)


@pytest.mark.parametrize(
    "texts, joined",
    [
        (["hello", "there"], "hello there"),
        (["你好", "世界", "OK", "好"], "你好世界OK好"),
        (["안녕", "하세요"], "안녕 하세요"),
        (["こんにちは。", "Tom"], "こんにちは。Tom"),
        (["สวัสดี", "ครับ"], "สวัสดีครับ"),
        (["hello", ",", "you", "?!", ".NET"], "hello, you?! .NET"),
        ([], ""),
    ],
)
def test_texts_join_as_their_script_does(texts, joined):
    assert join_texts(texts) == joined
    assert parse_transcript("".join(f"[0.00]{text}[0.00]" for text in texts)).text == joined


# ------------------------------------------------------------------------------------------------------------------ JSON

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1000, 1000)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text().filter(lambda text: "</think>" not in text),  # which ends the reasoning wherever it stands
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(string.ascii_letters, max_size=5), VALUES, max_size=4)


@given(OBJECTS, st.booleans(), st.sampled_from([None, 2]))
@example({"": "<think>"}, False, None)
@settings(deadline=None)
def test_an_object_is_found_whatever_stands_around_it(value, ascii, indent):
    text = json.dumps(value, ensure_ascii=ascii, indent=indent)
    for around in ("%s", "```json\n%s\n```", "Here you are [1]: %s and {that} is it.", "<think>{}</think>\n%s"):
        assert parse_json(around.replace("%s", text)) == value


@given(OBJECTS.filter(bool), st.data())
@settings(deadline=None)
def test_an_object_that_is_cut_off_keeps_what_is_complete(value, data):
    text = json.dumps(value)
    cut = parse_json(text[: data.draw(st.integers(0, len(text) - 1))])
    assert cut is None or list(cut.items())[:-1] == list(value.items())[: len(cut) - 1]


@pytest.mark.parametrize(
    "text, value",
    [
        ('{"gender": "female", "age": [1, 2,], }', {"gender": "female", "age": [1, 2]}),
        ('{"summary": "two\nlines, and a tab\t"}', {"summary": "two\nlines, and a tab\t"}),
        ('{"a": "x, }", "b": "}"}', {"a": "x, }", "b": "}"}),
        ('{"a": {"b": 1}, "c": "tru', {"a": {"b": 1}}),
        ('```json\n{"a": 1, "b": [2, 3', {"a": 1, "b": [2]}),
        ('[0.00] {"a": 1}', {"a": 1}),
        ("[1, 2, {}]", [1, 2, {}]),
        ("x {y} z", None),
        ("{", None),
        ("", None),
        ('{"a": NaN}', {"a": None}),
        ('<think>{"a": 1}</think>{"a": 2}', {"a": 2}),
    ],
)
def test_json_is_read_leniently(text, value):
    assert parse_json(text) == value


def test_the_package_exports_all_of_it():
    from moss_audio import transcripts_moss_audio

    for name in transcripts_moss_audio.__all__:
        assert getattr(moss_audio, name) is getattr(transcripts_moss_audio, name) and name in moss_audio.__all__


PAGE = (Path(__file__).parent.parent / "docs" / "transcripts.md").read_text(encoding="utf-8")


def test_the_snippets_of_the_documentation_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    snippets = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(snippets) == 4
    for index, code in enumerate(snippets):
        exec(compile(code, f"snippet {index} of docs/transcripts.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "2.3 4.32 S02 The weather is nice today." in printed and "0.0 Hello.\n1.2 Good day.\n" in printed
    assert "00:00:00,000 --> 00:00:02,010\n[S01] Hello there." in printed
    assert (tmp_path / "meeting.vtt").read_text(encoding="utf-8").startswith("WEBVTT")


def test_the_documentation_names_all_repairs():
    assert all(f"`{kind}`" in PAGE for kind in REPAIRS)
