"""The world of the small checkpoint: what is in a clip is where the generator says, and the answers follow from it."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from moss_audio.training import load_samples
from moss_audio.training.tiny_world import (
    ACCENTS,
    ASKERS,
    HEARD_VARIANTS,
    LABELS,
    NO_SPEECH,
    RATE,
    SOUND_MAKERS,
    UNHEARD_VARIANTS,
    WORDS,
    Clip,
    Event,
    TinyWorld,
    Vocabulary,
    ask,
    description,
    main,
    questions,
    reasoning,
    speak,
    timestamps,
    transcript,
    turns,
)


needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


class HummedVocabulary(Vocabulary):
    """Every word is a hum of its own length, so that no espeak-ng is needed."""

    def __init__(self, split: str = "train"):
        super().__init__(split)

    def __call__(self, word: str, index: int) -> np.ndarray:
        seconds = 0.3 + 0.02 * WORDS.index(word)
        return np.sin(2 * np.pi * 200 * np.arange(round(seconds * RATE)) / RATE).astype(np.float32)


@pytest.fixture(scope="module")
def world():
    return TinyWorld("train", 3, HummedVocabulary())


CLIP = Clip(
    np.zeros(RATE * 6, dtype=np.float32),
    [Event(0.5, 0.9, "seven"), Event(1.25, 1.5, "beep"), Event(2.0, 2.4, "go"), Event(4.0, 5.07, "beep")],
)
EMPTY = Clip(np.zeros(RATE * 3, dtype=np.float32), [])


def test_a_clip_is_the_same_every_time_and_no_other_is():
    first, again = (TinyWorld("train", 3, HummedVocabulary()) for _ in range(2))
    assert np.array_equal(first[5].waveform, again[5].waveform) and first[5].events == again[5].events
    others = (first[6], TinyWorld("train", 4, HummedVocabulary())[5], TinyWorld("dev", 3, HummedVocabulary("dev"))[5])
    for other in others:
        assert other.seconds != first[5].seconds


def test_a_split_must_exist():
    with pytest.raises(ValueError, match="'validation' is none of"):
        TinyWorld("validation", 0)


def test_clips_are_as_varied_as_described(world):
    clips = [world[index] for index in range(300)]
    assert {len(clip.events) for clip in clips} == set(range(6))
    assert all(2 <= clip.seconds <= 12 and np.abs(clip.waveform).max() <= 1 for clip in clips)
    assert {event.label for clip in clips for event in clip.events} == set(LABELS)
    gaps = [after.start - before.end for clip in clips for before, after in zip(clip.events, clip.events[1:])]
    assert 0 < np.mean(np.array(gaps) < -0.011) < 0.1  # few overlap
    assert np.mean(np.abs(gaps) < 0.011) > 0.03  # some touch
    assert all(0 <= event.start < event.end <= clip.seconds + 0.02 for clip in clips for event in clip.events)
    outlines = [world.outline(index) for index in range(5)]
    assert [(clip.seconds, clip.events) for clip in outlines] == [(clip.seconds, clip.events) for clip in clips[:5]]


def test_events_are_where_they_are_said_to_be(world):
    """Of clips with little noise: loud within every event, quiet outside of all."""
    checked = 0
    for index in range(120):
        clip = world[index]
        blocks = clip.waveform[: len(clip.waveform) // 160 * 160].reshape(-1, 160)
        level = np.sqrt((blocks**2).mean(axis=1))
        inside = np.zeros(len(level), dtype=bool)
        for event in clip.events:
            inside[max(0, round(event.start * 100) - 1) : round(event.end * 100) + 1] = True
        if not clip.events or inside.all() or level[~inside].max() > 0.03 * level.max():
            continue
        checked += 1
        for event in clip.events:
            within = level[round(event.start * 100) : round(event.end * 100)]
            assert within[:3].max() > 3 * level[~inside].max(), (index, event)
            assert within[-8:].max() > 2 * level[~inside].max(), (index, event)
    assert checked > 20


@pytest.mark.parametrize("label", SOUND_MAKERS)
def test_sounds_are_sounds(label):
    sounds = [SOUND_MAKERS[label](np.random.default_rng(seed)) for seed in range(5)]
    assert all(np.isfinite(sound).all() and 0.1 * RATE < len(sound) < 1.3 * RATE for sound in sounds)
    assert len({len(sound) for sound in sounds}) == 5


def test_answers_of_a_clip():
    assert transcript(CLIP) == "seven go"
    assert timestamps(CLIP) == "[0.50]seven[0.90][2.00]go[2.40]"
    assert description(CLIP) == (
        'The word "seven", then a beep, then the word "go", then a beep. The clip lasts 6 seconds.'
    )
    assert reasoning(CLIP) == "0.50 to 0.90: seven\n1.25 to 1.50: beep\n2.00 to 2.40: go\n4.00 to 5.07: beep"
    assert transcript(EMPTY) == timestamps(EMPTY) == NO_SPEECH
    assert description(EMPTY) == "Nothing can be heard. The clip lasts 3 seconds."


def test_answers_to_all_questions_that_can_be_asked_about_a_clip():
    rng = np.random.default_rng(0)
    asked = {task: {ask(CLIP, task, rng)[1:] for _ in range(400)} for task in ASKERS}
    when = dict(asked["when"])
    assert when['When does the word "seven" start?'] == "At 0.50 seconds."
    assert when['At what time does the word "go" end?'] == "At 2.40 seconds."
    assert not any("beep" in prompt for prompt in when)  # there are two
    count = dict(asked["count"])
    assert count["How many words are spoken?"] == "2." and count["How many events are there?"] == "4."
    assert count["How many beeps are there?"] == "2." and count["How many bells are there?"] == "0."
    order = dict(asked["order"])
    assert order["What comes first?"] == 'The word "seven".' and order["What comes last?"] == "A beep."
    assert order['What comes after the word "go"?'] == "A beep."
    assert order['What comes before the word "seven"?'] == "Nothing."
    presence = dict(asked["presence"])
    assert presence["Is there speech?"] == "Yes." and presence["Is there a chord?"] == "No."
    assert presence['Is there the word "go"?'] == "Yes."
    for prompt, letter in asked["choice"]:
        _, question, *options = prompt.split("\n")
        options = dict(option.split(". ") for option in options)
        assert list(options) == list("ABCD") and len(set(options.values())) == 4
        right = {
            "Question: What comes first?": {"seven"},
            "Question: What comes last?": {"beep"},
            'Question: What comes after the word "seven"?': {"beep"},
            'Question: What comes after the word "go"?': {"beep"},
            "Question: Which of these can be heard?": {"seven", "go", "beep"},
            "Question: How many beeps are there?": {"2"},
        }.get(question, {"0"})
        assert options[letter] in right and not right & {options[other] for other in "ABCD" if other != letter}


def test_questions_about_nothing():
    rng = np.random.default_rng(0)
    assert ask(EMPTY, "when", rng) is None and ask(EMPTY, "order", rng) is None
    assert {ask(EMPTY, "count", rng).answer for _ in range(50)} == {"0."}
    assert {ask(EMPTY, "presence", rng).answer for _ in range(50)} == {"No."}
    assert {question.task.removesuffix("-thinking") for question in questions(EMPTY, rng)} <= set(ASKERS)


def test_thinking_lists_the_events_and_comes_last():
    rng = np.random.default_rng(1)
    question = ask(CLIP, "count", rng, think=True)
    assert question.task == "count-thinking"
    block, answer = question.answer.split("\n</think>\n\n")
    assert block == "<think>\n" + reasoning(CLIP) and answer in ("0.", "1.", "2.", "4.")
    conversations = [turns(CLIP, rng) for _ in range(100)]
    assert {len(asked) for asked in conversations} == {1, 2, 3}
    assert not any("<think>" in question.answer for asked in conversations for question in asked[:-1])
    assert any("<think>" in asked[-1].answer for asked in conversations)


def test_the_voices_of_test_are_never_heard_in_training():
    assert UNHEARD_VARIANTS and not {name.lower() for name in HEARD_VARIANTS} & {
        name.lower() for name in UNHEARD_VARIANTS
    }


@needs_espeak
def test_words_are_trimmed():
    for voice in (ACCENTS[0], "en-gb+f3"):
        samples = speak("seven", voice, 150, 40)
        assert 0.15 * RATE < len(samples) < 1.0 * RATE
        blocks = samples.reshape(-1, RATE // 200)
        level = np.sqrt((blocks**2).mean(axis=1))
        assert level.max() == pytest.approx(1, abs=1e-3) and min(level[0], level[-1]) > 0.05
    assert len(speak("seven", "en-us", 110)) > 1.3 * len(speak("seven", "en-us", 220))


@needs_espeak
def test_utterances_are_kept(tmp_path):
    first, again = Vocabulary("dev", utterances=1), Vocabulary("dev", utterances=1)
    first.speak_all(tmp_path / "words.npz")
    again.speak_all(tmp_path / "words.npz")
    assert len(again._spoken) == len(WORDS) and [path.name for path in tmp_path.iterdir()] == ["words.npz"]
    assert np.array_equal(first("two", 0), again("two", 0))
    assert np.array_equal(Vocabulary("dev")("two", 0), first("two", 0))


@needs_espeak
def test_written_data_is_training_data(tmp_path, capsys):
    main([str(tmp_path), "--split", "test", "--clips", "3", "--seed", "2"])
    samples = load_samples(tmp_path / "test.jsonl")
    clips = [json.loads(line) for line in (tmp_path / "test.clips.jsonl").read_text().splitlines()]
    assert len(clips) == 3 and len(samples) > 15
    world = TinyWorld("test", 2)
    for index, clip in enumerate(clips):
        waveform, rate = soundfile.read(tmp_path / clip["path"])
        assert rate == RATE and abs(len(waveform) / RATE - clip["duration"]) < 1e-3
        assert np.abs(waveform - world[index].waveform).max() < 1e-4
    for row in map(json.loads, (tmp_path / "test.jsonl").read_text().splitlines()):
        silent = not any(event["label"] in WORDS for event in row["events"])
        assert row["task"] not in (("transcription", "timestamps") if silent else ("no-speech",))
        assert [Event(**event) for event in clip["events"]] == world[index].events
    tasks = {sample["task"] for sample in samples}
    assert {"transcription", "timestamps", "description", "count", "presence", "choice"} <= tasks
    assert samples[0]["messages"][0]["content"][0]["path"].endswith("00000.wav")
    with pytest.raises(SystemExit, match="is there already"):
        main([str(tmp_path), "--split", "test", "--clips", "3", "--seed", "2"])


def test_a_machine_without_espeak_is_told(monkeypatch):
    from moss_audio.training import tiny_world

    tiny_world.check_espeak.cache_clear()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="install it"):
        speak("one", "en-us")
    tiny_world.check_espeak.cache_clear()
