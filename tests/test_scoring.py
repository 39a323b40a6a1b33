"""The metrics of `moss-audio evaluate`, on cases counted by hand."""

import pytest

from moss_audio.training.scoring import (
    character_error_rate,
    chosen_letters,
    event_f1,
    exact_match,
    find_events,
    normalised,
    time_answers,
    timestamp_score,
    word_error_rate,
    words_of,
)


def test_texts_are_compared_without_case_and_punctuation():
    assert normalised("  It's SO, so “good”… \n") == "it's so so good"
    assert normalised("It’s １０ Straße") == "it's 10 strasse"
    assert words_of("Hello,world") == ["hello", "world"]
    assert words_of("今天 good天气。") == ["今", "天", "good", "天", "气"]


def test_word_error_rate():
    references = ["one two three four", "Yes.", ""]
    hypotheses = ["one too four", "yes", "go"]  # one substituted, one missing; none; one added
    score = word_error_rate(references, hypotheses)
    assert score.figures == {"wer": pytest.approx(3 / 5)} and score.wrong == [True, False, True]
    assert word_error_rate([], []).figures == {"wer": None}
    assert word_error_rate([""], [""]) == word_error_rate(["…"], ["!"])
    assert word_error_rate([""], [""]).figures == {"wer": None}


def test_character_error_rate():
    score = character_error_rate(["今天天气", "ab c"], ["今天天汽", "abc"])
    assert score.figures == {"cer": pytest.approx(1 / 7)} and score.wrong == [True, False]


def test_timestamps_of_matched_words():
    references = ["[0.50]seven[0.90][2.00]go[2.40]", "[1.00]yes[1.50]"]
    hypotheses = ["[0.52]seven[0.90][2.05]no[2.40]", "[0.90]yes[1.60]"]
    score = timestamp_score(references, hypotheses)
    # matched: 0.50 and 0.90 of "seven" (20 and 0 ms), both of "yes" (100 and 100 ms); "go" is not
    assert score.figures["aas_ms"] == pytest.approx(55) and score.figures["aas_median_ms"] == pytest.approx(60)
    assert score.figures["matched"] == pytest.approx(4 / 6)
    assert score.figures["wer"] == pytest.approx(1 / 3)
    assert score.wrong == [True, False]


def test_a_sentence_with_a_wrong_word_keeps_its_ends():
    reference = "[0.00]hello there you[2.00][2.50]good bye[4.00]"
    score = timestamp_score([reference], ["[0.10]hello their you[2.00][2.50]good buy[4.20]"])
    # start and end of the first, start of the second; its last word is wrong
    assert score.figures["matched"] == pytest.approx(3 / 4)
    assert score.figures["aas_ms"] == pytest.approx(100 / 3)


def test_a_segment_that_was_cut_elsewhere_matches_at_its_own_ends_only():
    score = timestamp_score(["[0.00]a b[1.00][1.00]c d[2.00]"], ["[0.00]a b c d[2.00]"])
    assert score.figures["matched"] == pytest.approx(2 / 4) and score.figures["aas_ms"] == 0
    assert score.figures["wer"] == 0 and score.wrong == [True]


def test_a_timestamp_that_is_off_by_just_the_collar_is_right():
    assert timestamp_score(["[3.42]a[4.00]"], ["[3.62]a[4.00]"]).wrong == [False]
    assert timestamp_score(["[3.42]a[4.00]"], ["[3.63]a[4.00]"]).wrong == [True]


def test_timestamps_that_are_far_off_or_missing_are_wrong():
    far = timestamp_score(["[0.00]a[1.00]"], ["[0.00]a[1.30]"])
    assert far.wrong == [True] and far.figures["aas_ms"] == pytest.approx(150)
    none = timestamp_score(["[0.00]a[1.00]"], ["a"])
    assert none.wrong == [True] and none.figures["matched"] == 0 and none.figures["aas_ms"] is None
    silent = timestamp_score(["There is no speech."], ["There is no speech."])
    assert silent.wrong == [False] and silent.figures["matched"] is None


def test_segments_without_words_have_times():
    text = "[1.00]♪[2.00][2.00]go[2.50][3.00]…[4.00]"
    score = timestamp_score([text], [text])
    assert score.figures["matched"] == 1 and score.figures["aas_ms"] == 0 and score.wrong == [False]
    score = timestamp_score([text], ["[2.10]go[2.50][3.00]…[4.00]"])
    assert score.figures["matched"] == pytest.approx(4 / 6) and score.figures["aas_ms"] == pytest.approx(25)


def test_exact_match():
    score = exact_match(["A", "Yes.", "a bell"], ["a.", "No.", "A bell."])
    assert score.figures == {"accuracy": pytest.approx(2 / 3)} and score.wrong == [False, True, False]
    assert exact_match([], []).figures == {"accuracy": None}


def test_a_choice_is_read_like_the_pipelines():
    answers = ["B", "B. a dog", "The answer is C.", "A or B", "a bell", "none"]
    score = chosen_letters(["B", "B", "B", "B", "A bell.", "B"], answers)
    assert score.wrong == [False, False, True, True, False, True] and score.figures == {"accuracy": 0.5}


def test_times_within_the_collar_are_right():
    references = ["At 3.42 seconds."] * 5
    score = time_answers(
        references, ["At 3.62 seconds.", "at 3.40 seconds", "At 3.63 seconds.", "At noon.", "At 3.42."]
    )
    assert score.wrong == [False, False, True, True, True]
    assert score.figures["accuracy"] == pytest.approx(2 / 5)
    assert score.figures["aas_ms"] == pytest.approx((200 + 20 + 210 + 0) / 4)


def test_event_f1_counts_the_longest_common_subsequence():
    references = [["bell", "go", "beep"], [], ["beep"]]
    hypotheses = [["bell", "beep", "go"], ["chord"], ["beep"]]
    score = event_f1(references, hypotheses)  # 2 + 0 + 1 in common, 4 there, 5 named
    assert score.figures["event_precision"] == pytest.approx(3 / 5)
    assert score.figures["event_recall"] == pytest.approx(3 / 4)
    assert score.figures["event_f1"] == pytest.approx(6 / 9)
    assert score.wrong == [True, True, False]
    assert event_f1([[]], [[]]).figures["event_f1"] is None


def test_events_are_found_in_sentences():
    labels = ["no", "noise burst", "beep", "clicks", "one"]
    text = 'A noise burst, then two Beeps, then the word "no", then clicks. None is a phone.'
    assert find_events(text, labels) == ["noise burst", "beep", "no", "clicks"]
    assert find_events("anything", []) == []
    assert find_events("先是狗叫，然后有人说beep，接着铃声响起。", ["铃声", "beep", "狗叫"]) == [
        "狗叫",
        "beep",
        "铃声",
    ]
    assert find_events("He says C++, then C, and no cats.", ["C", "C++", "cat"]) == ["C++", "C", "cat"]
