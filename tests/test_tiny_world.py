"""The world of the small checkpoint: what is in a clip is where the generator says, and the answers follow from it."""

import json
import re
import shutil

import numpy as np
import pytest
import soundfile

from moss_audio.tasks_moss_audio import RELEASED_CHOICE
from moss_audio.training import load_samples, tiny_world
from moss_audio.training.tiny_world import (
    ACCENTS,
    ASKERS,
    BRIEFLY,
    HEARD_VARIANTS,
    LABELS,
    NO_SPEECH,
    RATE,
    SOUND_MAKERS,
    SURVEYS,
    UNHEARD_VARIANTS,
    WORDS,
    Clip,
    Event,
    TinyWorld,
    Vocabulary,
    ask,
    description,
    listed,
    listing,
    lookups,
    loud_part,
    main,
    make_voices,
    matching,
    opened_choice,
    questions,
    raised,
    reading,
    reasoning,
    speak,
    spliced,
    survey,
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
    assert when['When does the word "seven" start?'] == 'The word "seven" starts at 0.50 seconds.'
    assert when['At what time does the word "go" end?'] == 'The word "go" ends at 2.40 seconds.'
    assert not any("beep" in prompt for prompt in when)  # there are two
    count = dict(asked["count"])
    assert count["How many words are spoken?"] == "2." and count["How many events are there?"] == "4."
    assert count["How many beeps are there?"] == "2." and count["How many bells are there?"] == "0."
    order = dict(asked["order"])
    assert order["What comes first?"] == 'First comes the word "seven".'
    assert order["What comes last?"] == "Last comes a beep."
    assert order['What comes after the word "go"?'] == 'After the word "go" comes a beep.'
    assert order['What comes before the word "seven"?'] == 'Before the word "seven" comes nothing.'
    presence = dict(asked["presence"])
    assert presence["Is there speech?"] == "Yes." and presence["Is there a chord?"] == "No."
    assert presence['Is there the word "go"?'] == "Yes."
    for prompt, letter in asked["choice"]:
        lines = prompt.split("\n")
        assert len(lines) == 6 and (lines[0] == RELEASED_CHOICE) != (lines[-1] == "Answer with a letter.")
        question, *options = lines[1:] if lines[0] == RELEASED_CHOICE else lines[:-1]
        question = question.removeprefix("Question: ")
        options = dict(option.split(". ") for option in options)
        assert list(options) == list("ABCD") and len(set(options.values())) == 4
        right = {
            "What comes first?": {"seven"},
            "What comes last?": {"beep"},
            'What comes after the word "seven"?': {"beep"},
            'What comes after the word "go"?': {"beep"},
            "Which of these can be heard?": {"seven", "go", "beep"},
            "How many beeps are there?": {"2"},
        }.get(question, {"0"})
        assert options[letter] in right and not right & {options[other] for other in "ABCD" if other != letter}


def test_questions_about_nothing():
    rng = np.random.default_rng(0)
    assert ask(EMPTY, "when", rng) is None and ask(EMPTY, "order", rng) is None
    assert {ask(EMPTY, "count", rng).answer for _ in range(50)} == {"0."}
    assert {ask(EMPTY, "presence", rng).answer for _ in range(50)} == {"No."}
    assert {question.task.removesuffix("-thinking") for question in questions(EMPTY, rng)} <= set(ASKERS)


def test_a_choice_can_be_asked_without_its_options():
    rng, opened = np.random.default_rng(0), {}
    for _ in range(200):
        choice = ask(CLIP, "choice", rng)
        question = opened_choice(choice)
        assert (question is None) == ("these" in choice.prompt)
        opened.update({} if question is None else {question.prompt: question})
    answers = {prompt.removesuffix(f" {BRIEFLY}"): question.answer for prompt, question in opened.items()}
    assert all(prompt.endswith(BRIEFLY) for prompt in opened)
    assert answers["What comes first?"] == "seven" and answers["What comes last?"] == "beep"
    assert answers["How many beeps are there?"] == "2" and answers["How many bells are there?"] == "0"
    assert {question.task for question in opened.values()} == {"order", "count"}


def test_letters_are_asked_for_without_a_clip():
    seen = set()
    for seed in range(20):
        first, *others = matching(np.random.default_rng(seed))
        *lines, question = first.prompt.split("\n")
        options = {line[3:]: line[0] for line in lines}
        assert list(options.values()) == list("ABCDEF") and set(options) <= set(LABELS)
        assert first.answer == options[question.removeprefix("Which of these is ")[:-1]]
        assert len(others) == 5
        assert all(other.answer == options[other.prompt.removeprefix("Which is ")[:-1]] for other in others)
        seen.add(first.answer)
    assert len(seen) > 3


def test_lookups_ask_for_every_sign():
    for seed in range(20):
        (question,) = lookups(np.random.default_rng(seed))
        *lines, named = question.prompt.split("\n")
        signs = {line[3:]: line[0] for line in lines}
        assert len(signs) == 8 and set(signs) <= set(LABELS) and len(set(signs.values())) == 8
        answered = re.findall(r" ([a-z ]+?)(\d| [A-H])(?= |$)", question.answer.removeprefix("The"))
        assert len(answered) == 8 and all(signs[label] == sign.strip() for label, sign in answered)
        labels = [label for label, _ in answered]
        assert named == f"Which signs have these: {', '.join(labels)}?" and set(labels) == set(signs)


def test_reading_opens_with_what_is_in_the_clip():
    for clip in (CLIP, EMPTY):
        asked = [reading(clip, np.random.default_rng(seed)) for seed in range(50)]
        assert all(turns[0].prompt.startswith(f"{description(clip)}\n") for turns in asked)
        assert {turn.task for turns in asked for turn in turns} <= {"presence", "count", "order", "choice"}
        assert max(map(len, asked)) in (5, 6)


def test_thinking_lists_the_events_and_comes_last():
    rng = np.random.default_rng(1)
    question = ask(CLIP, "count", rng, think=True)
    assert question.task == "count-thinking"
    block, answer = question.answer.split("\n</think>\n\n")
    assert block == "<think>\n" + reasoning(CLIP) and answer in ("0.", "1.", "2.", "4.")
    conversations = [turns(CLIP, rng) for _ in range(300)]
    lengths = {len(asked) for asked in conversations}
    assert lengths == set(range(1, 7))
    assert {len(turns(CLIP, rng, most=1)) for _ in range(50)} == {1}
    brief = [question for asked in conversations for question in asked[:-1]]
    assert {question.task for question in brief} == {
        "when",
        "count",
        "order",
        "presence",
        "choice",
        "survey",
    }
    last = [asked[-1].task for asked in conversations]
    assert {"transcription", "timestamps", "description", "when-thinking", "choice-thinking", "survey"} <= set(last)
    assert all(len({question.prompt for question in asked}) == len(asked) for asked in conversations)


def test_where_each_event_of_a_list_has_been_told():
    rng = np.random.default_rng(0)
    twice = Clip(CLIP.waveform, [*CLIP.events[:2], CLIP.events[1], Event(5.2, 5.7, "clicks")])
    for clip in (CLIP, twice):
        told = {}
        for _ in range(100):
            question = listing(clip, rng)
            ends = listed(question, clip)
            told[question.task] = [question.answer[begin:end] for begin, end in zip([0, *ends], ends)]
        assert told["transcription"] == (["seven", " go"] if clip is CLIP else ["seven"])
        assert told["timestamps"] == ["[0.50]seven[0.90]", "[2.00]go[2.40]"][: len(told["transcription"])]
    assert told["description"] == ['The word "seven', '", then a beep', ", then a beep", ", then clicks"]
    thought = ["<think>\n0.50 to 0.90: seven", *["\n1.25 to 1.50: beep"] * 2, "\n5.20 to 5.70: clicks"]
    assert all(told[task] == thought for task in told if task.endswith("-thinking"))
    assert set(told) > {"count-thinking", "order-thinking", "when-thinking"}
    assert listed(ask(CLIP, "count", rng), CLIP) is None
    assert listed(ask(EMPTY, "description", rng), EMPTY) == listed(ask(EMPTY, "transcription", rng), EMPTY) == []
    clicks = Clip(CLIP.waveform, [Event(0.2, 0.7, "clicks"), Event(1.0, 1.4, "no")])
    assert listed(ask(clicks, "description", rng), clicks) == [6, len('Clicks, then the word "no')]


def test_clips_are_spliced_where_it_is_quiet():
    world, spliced_ones = TinyWorld("train", 0, HummedVocabulary()), []
    for index in range(0, 200, 2):
        first, second = world[index], world[index + 1]
        both = spliced(first, second, np.random.default_rng(index))
        if both is first:
            continue
        spliced_ones.append(both)
        outline = spliced(world.outline(index), world.outline(index + 1), np.random.default_rng(index))
        assert outline.events == both.events and len(outline.waveform) == len(both.waveform)
        # The last events of the first clip and the first of the second are heard as they were.
        heard = [*((first, event) for event in first.events), *((second, event) for event in second.events)]
        count, leading = len(both.events), len(first.events)
        begins = range(max(0, leading - count), min(leading, len(heard) - count) + 1)
        assert any(
            all(
                event.label == again.label and np.array_equal(inside(clip, event), inside(both, again))
                for (clip, event), again in zip(heard[begin:], both.events)
            )
            for begin in begins
        )
    seconds = [clip.seconds for clip in spliced_ones]
    assert len(seconds) > 60 and 2.0 <= min(seconds) and max(seconds) <= 12.0
    assert max(len(clip.events) for clip in spliced_ones) > 5


def inside(clip: Clip, event: Event) -> np.ndarray:
    """What is heard of an event, but for its edges, as times are rounded."""
    return clip.waveform[round(event.start * RATE) + 100 : round(event.end * RATE) - 100]


def test_labels_come_again_more_often_in_training():
    again = {}
    for split in ("train", "test"):
        world = TinyWorld(split, 0, HummedVocabulary(split))
        labels = [[event.label for event in world.outline(index).events] for index in range(400)]
        again[split] = np.mean([len(set(one)) < len(one) for one in labels if len(one) > 1])
    assert again["train"] > again["test"] + 0.1


def test_surveys_tell_what_is_to_be_found_about_each_label():
    rng = np.random.default_rng(3)
    asked = {kind: {survey(CLIP, kind, rng) for _ in range(60)} for kind in SURVEYS}
    for kind, turns_of_it in asked.items():
        for question in turns_of_it:
            named = re.fullmatch(re.escape(SURVEYS[kind]).replace(r"\{\}", "(.*)"), question.prompt)[1].split(", ")
            places = [question.answer.index(f" {label}") for label in named]
            assert places == sorted(places) and len(set(named)) == len(named)  # each in its turn
    answers = {kind: {question.answer for question in turns_of_it} for kind, turns_of_it in asked.items()}
    assert all(
        len(orders) > 1 and survey(EMPTY, kind, rng) is None for kind, orders in answers.items() if kind != "counts"
    )
    once = {label: [event for event in CLIP.events if event.label == label] for label in LABELS}
    once = {label: events[0] for label, events in once.items() if len(events) == 1}
    for kind, name in (("starts", "start"), ("ends", "end")):
        for answer in answers[kind]:
            times = dict(re.findall(r" ([a-z ]+)(\d+\.\d\d)", answer.removeprefix("The")))
            assert times == {label: f"{getattr(event, name):.2f}" for label, event in once.items()}
    followers = dict(
        zip([event.label for event in CLIP.events], [*[event.label for event in CLIP.events[1:]], "nothing"])
    )
    for answer in answers["followers"]:
        assert set(answer.removeprefix("The ").removesuffix(",").split(", ")) == {
            f"{label} {followers[label]}" for label in once
        }
    for answer in answers["counts"]:
        counts = dict(re.findall(r" ([a-z ]+)(\d)", answer.removeprefix("The")))
        there = [event.label for event in CLIP.events]
        assert set(counts) >= set(there)
        assert all(there.count(label) == int(count) for label, count in counts.items())


def test_turns_about_nothing():
    rng = np.random.default_rng(0)
    asked = [turn for _ in range(100) for turn in turns(EMPTY, rng) if turn.task != "survey"]
    answers = {question.answer.split("</think>\n\n")[-1] for question in asked}
    answers -= {"0", *"ABCDEF"}
    assert answers == {"0.", "No.", NO_SPEECH, description(EMPTY)}


def test_training_hears_no_utterance_twice_alike():
    for split in ("train", "dev", "test"):
        world = TinyWorld(split, 0, HummedVocabulary(split))
        events = [event for index in range(600) for event in world.outline(index).events if event.label == "seven"]
        seconds, heard = 0.3 + 0.02 * WORDS.index("seven"), [event.end - event.start for event in events]
        if split != "train":
            assert heard == pytest.approx([seconds] * len(heard), abs=0.011)  # times are rounded
        else:
            assert seconds / 1.22 < min(heard) < 0.9 * seconds < 1.1 * seconds < max(heard) < seconds / 0.82


def test_a_raised_voice_is_higher_and_faster():
    hum = np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE).astype(np.float32)
    for factor in (0.8, 1.0, 1.25):
        spoken = raised(hum, factor)
        loudest = np.abs(np.fft.rfft(spoken)).argmax() * RATE / len(spoken)
        assert len(spoken) == pytest.approx(RATE / factor, abs=2) and loudest == pytest.approx(200 * factor, abs=2)


class HissingVocabulary(HummedVocabulary):
    """The hum begins and ends with something quieter: 100 ms before, 50 ms after."""

    def __call__(self, word: str, index: int) -> np.ndarray:
        hum = super().__call__(word, index)
        return np.concatenate([0.02 * hum[: RATE // 10], hum, 0.02 * hum[: RATE // 20]])


def test_what_is_quieter_than_a_word_sounds_before_and_after_it():
    plain, hissing = (TinyWorld("dev", 0, kind("dev")) for kind in (HummedVocabulary, HissingVocabulary))
    checked = 0
    for index in range(200):
        clip = hissing[index]
        assert clip.events == plain[index].events and len(clip.waveform) == len(plain[index].waveform)
        if len(clip.events) != 1 or clip.events[0].label not in WORDS:
            continue
        more = (clip.waveform - plain[index].waveform)[: RATE * 12]
        heard = np.flatnonzero(np.abs(more) > 1e-6) / RATE
        event = clip.events[0]
        assert heard.min() == pytest.approx(max(event.start - 0.1, 0), abs=0.011)
        assert heard.max() == pytest.approx(min(event.end + 0.05, clip.seconds), abs=0.011)
        assert not ((heard > event.start + 0.01) & (heard < event.end - 0.01)).any()
        checked += 1
    assert checked > 5


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
        assert level.max() == pytest.approx(1, abs=1e-3) and min(level[0], level[-1]) > 0.0099
        start, end = loud_part(samples)
        assert 0 <= start < end <= len(samples)
        assert min(level[start // (RATE // 200)], level[end // (RATE // 200) - 1]) > 0.05
    assert len(speak("seven", "en-us", 110)) > 1.3 * len(speak("seven", "en-us", 220))


@needs_espeak
def test_half_of_training_is_spoken_by_made_voices(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_world, "MADE_VOICES", 3)
    make_voices(tmp_path)
    spoken = [speak("seven", f"en-us+{name}", voices=tmp_path) for name in ("made0", "made1", "f3")]
    assert all(0.15 * RATE < len(samples) < 1.0 * RATE for samples in spoken)
    assert np.array_equal(spoken[2], speak("seven", "en-us+f3"))
    plain = speak("seven", "en-us")  # how espeak-ng speaks with a variant that it does not know
    for samples, other in ((spoken[0], spoken[1]), (spoken[0], plain), (spoken[1], plain)):
        assert len(samples) != len(other) or np.abs(samples - other).max() > 0.1
    with pytest.raises(FileExistsError):
        make_voices(tmp_path)

    said = []
    monkeypatch.setattr(
        tiny_world, "speak", lambda word, voice, *rest: said.append((voice, rest[-1])) or np.ones(160, np.float32)
    )
    for split in tiny_world.SPLITS:
        for index in range(4):
            Vocabulary(split)("up", index)
    made = ["+made" in voice for voice, _ in said]
    assert made == [False, True] * 2 + [False] * 8
    assert [folder is not None and (folder / "espeak-ng-data").is_dir() for _, folder in said] == made


@needs_espeak
def test_utterances_are_kept(tmp_path):
    first, again = Vocabulary("dev", utterances=1), Vocabulary("dev", utterances=1)
    first.speak_all(tmp_path / "words.npz")
    again.speak_all(tmp_path / "words.npz")
    assert len(again._spoken) == len(WORDS) and [path.name for path in tmp_path.iterdir()] == ["words.npz"]
    assert np.array_equal(first("two", 0), again("two", 0))
    assert np.array_equal(Vocabulary("dev")("two", 0), first("two", 0))
    with pytest.raises(ValueError, match=r"words.npz lacks 18 of the 36 utterances of dev, such as zero\.1;"):
        Vocabulary("dev", utterances=2).speak_all(tmp_path / "words.npz")


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
        assert [Event(**event) for event in clip["events"]] == world[index].events
    for row in map(json.loads, (tmp_path / "test.jsonl").read_text().splitlines()):
        silent = not any(event["label"] in WORDS for event in row["events"])
        assert row["task"] not in (("transcription", "timestamps") if silent else ("no-speech",))
        assert row["events"] == clips[row["clip"]]["events"]
    tasks = {sample["task"] for sample in samples}
    assert {"transcription", "timestamps", "description", "count", "presence", "choice"} <= tasks
    assert samples[0]["messages"][0]["content"][0]["path"].endswith("00000.wav")
    with pytest.raises(SystemExit, match="is there already"):
        main([str(tmp_path), "--split", "test", "--clips", "3", "--seed", "2"])


def test_a_machine_without_espeak_is_told(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="install it"):
        speak("one", "en-us")
