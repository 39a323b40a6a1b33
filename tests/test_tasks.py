"""Task requests on the processor: the released prompts to the letter, ours beside them, in batches."""

import itertools

import pytest
import torch

from moss_audio import chosen_letter, task_prompt
from moss_audio.tasks_moss_audio import TASKS, language_name
from tests.conftest import waveform


CLIPS = [waveform(1, 20000), waveform(2, 9000)]
SENTENCES = (
    "Transcribe the audio into sentence-level timestamps using the format [xx.xx]text[yy.yy], where xx.xx and yy.yy are "
    "timestamps with centisecond precision rounded to two decimal places. Concatenate consecutive segments without breaks. "
    "For example: [0.00]hello there[2.01][2.01]the weather is nice today[4.32]. Do not include any additional content such as "
    "explanations, headings, or annotations."
)
SPEAKERS = (
    "Transcribe the audio into text. Each sentence should begin with a start timestamp and a speaker label ([S01], [S02], "
    "[S03], ...), followed by the corresponding spoken content, and end with an end timestamp to clearly indicate the time "
    "span of that sentence."
)
ATTRIBUTES = (
    "Describe the vocal characteristics in the audio in JSON format. Include the following fields: gender, age, pitch, speed, "
    "volume, clarity, fluency, accent, texture, emotion, tone, personality, and summary. Fill each field with the "
    "corresponding description."
)
CHOICE = (
    "Choose the most suitable answer from options A, B, C, and D for the question on the next line. You should output only "
    "A, B, C, or D. Do not provide any additional explanations or content."
)


def wrapped(text):
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<|audio_bos|><|AUDIO|><|audio_eos|>\n{text}<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "method, arguments, text",
    [
        ("transcription", {}, "Transcribe the audio."),
        ("transcription", {"timestamps": "sentence"}, SENTENCES),
        ("transcription", {"timestamps": "word"}, SENTENCES.replace("sentence-level", "word-level")),
        ("transcription", {"speakers": True}, SPEAKERS),
        ("transcription", {"speakers": True, "timestamps": "sentence"}, SPEAKERS),
        ("caption", {}, "Describe this audio."),
        ("attributes", {}, ATTRIBUTES),
        (
            "choice",
            {"question": "Which?\nA. a\nB. b\nC. c\nD. d"},
            f"{CHOICE}\nQuestion: Which?\nA. a\nB. b\nC. c\nD. d",
        ),
        (
            "choice",
            {"question": "Which?", "options": list("abcd")},
            f"{CHOICE}\nQuestion: Which?\nA. a\nB. b\nC. c\nD. d",
        ),
        ("question", {"question": "Who?"}, "Who?"),
        ("transcription", {"prompt": "Write it down."}, "Write it down."),
        ("caption", {"prompt": "Describe it."}, "Describe it."),
        # Wordings of ours.
        ("transcription", {"language": "de"}, "Transcribe the audio. The language is German."),
        ("transcription", {"keywords": "Qwen"}, "Transcribe the audio. These words may occur: Qwen."),
        (
            "transcription",
            {"keywords": ["Qwen", "MOSS\nAudio"], "language": "Swiss German", "prompt": "Write."},
            "Write. The language is Swiss German. These words may occur: Qwen, MOSS Audio.",
        ),
        ("summary", {}, "Summarize what is said in this audio."),
        (
            "choice",
            {"question": "Is it?", "options": ["yes", "no"]},
            CHOICE.replace("A, B, C, and D", "A and B").replace("A, B, C, or D", "A or B")
            + "\nQuestion: Is it?\nA. yes\nB. no",
        ),
    ],
)
def test_prompts(method, arguments, text, qwen3_processor):
    request = getattr(qwen3_processor, f"apply_{method}_request")
    prompts = request(CLIPS[0], tokenize=False, **arguments)
    assert prompts == [wrapped(text)]
    inputs = request(CLIPS[0], **arguments)
    expected = qwen3_processor(text=prompts, audio=[CLIPS[0]])
    assert set(inputs) == set(expected) and all(torch.equal(inputs[name], expected[name]) for name in expected)


def test_a_batch_with_an_argument_for_each(processor):
    prompts = processor.apply_transcription_request(
        CLIPS, prompt=[None, "Write."], language=["en", None], keywords=[["a", "b"], []], tokenize=False
    )
    assert prompts == [
        wrapped("Transcribe the audio. The language is English. These words may occur: a, b."),
        wrapped("Write."),
    ]
    shared = processor.apply_transcription_request(CLIPS, keywords=["a", "b"], tokenize=False)
    assert shared == [wrapped("Transcribe the audio. These words may occur: a, b.")] * 2
    questions = processor.apply_question_request(CLIPS, ["Who?", "What?"], tokenize=False)
    assert questions == [wrapped("Who?"), wrapped("What?")]
    options = processor.apply_choice_request(CLIPS, "Which?", [["a", "b"], ["c", "d"]], tokenize=False)
    assert options[0].count("A. a\nB. b<") == options[1].count("A. c\nB. d<") == 1
    inputs = processor.apply_caption_request(CLIPS)
    assert inputs["input_ids"].shape[0] == 2 and inputs["audio_data_seqlens"].tolist() == [125, 56]


def test_several_clips_for_one_request(processor):
    inputs = processor.apply_question_request([CLIPS, CLIPS[0]], "Which is louder?")
    assert inputs["input_ids"].shape[0] == 2 and inputs["audio_data"].shape[0] == 3


def test_further_arguments_reach_the_template_and_the_processor(processor):
    prompt = processor.apply_caption_request(CLIPS[0], tokenize=False, enable_thinking=False)[0]
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    inputs = processor.apply_caption_request(CLIPS[0], sampling_rate=8000, return_tensors="np")
    assert inputs["audio_data_seqlens"].tolist() == [250] and not isinstance(inputs["input_ids"], torch.Tensor)


@pytest.mark.parametrize(
    "method, arguments, message",
    [
        ("transcription", {"timestamps": "words"}, "`timestamps` 'words' is none of None, 'sentence' and 'word'"),
        ("transcription", {"timestamps": "word", "speakers": True}, "by sentence only. Pass timestamps='sentence'"),
        ("transcription", {"prompt": "a", "timestamps": "word"}, "`timestamps='word'` chooses a prompt"),
        ("transcription", {"prompt": "a", "speakers": True}, "`speakers=True` chooses a prompt"),
        ("transcription", {"language": "xx"}, "`language` 'xx' is no code that is known.*'Swiss German', or one of"),
        ("transcription", {"language": ["de"]}, "`language` has 1 entries for 2 recordings"),
        ("transcription", {"keywords": [["a"]]}, "`keywords` has 1 entries for 2 recordings"),
        ("transcription", {"keywords": ["a", " "]}, r"`keywords` \['a', ''\] holds an empty one"),
        ("question", {"question": ""}, "the task 'question' needs a question"),
        ("choice", {"question": "a", "options": ["b"]}, "must be a list of 2 to 26 answers"),
    ],
)
def test_what_does_not_fit(method, arguments, message, processor):
    with pytest.raises(ValueError, match=message):
        getattr(processor, f"apply_{method}_request")(CLIPS, **arguments)


def test_no_recording_and_no_such_task(processor):
    with pytest.raises(ValueError, match="`audio` is an empty list"):
        processor.apply_caption_request([])
    with pytest.raises(ValueError, match="`task` 'sing' is none of transcribe, caption"):
        task_prompt("sing")
    for task, (name, value) in itertools.product(TASKS, {"speakers": True, "options": ["a", "b"]}.items()):
        if (task, name) not in (("transcribe", "speakers"), ("choice", "options")):
            with pytest.raises(ValueError, match=f"`{name}` does not go with the task '{task}'"):
                task_prompt(task, "Who?", **{name: value})


@pytest.mark.parametrize(
    "given, name",
    [
        ("de", "German"),
        ("pt-BR", "Portuguese"),
        ("EN", "English"),
        ("german", "German"),
        ("Swiss German", "Swiss German"),
    ],
)
def test_languages(given, name):
    assert language_name(given) == name


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("B", "B"),
        (" (C). ", "C"),
        ("**D**", "D"),
        ("B. A dog barks", "B"),
        ("A) one", "A"),
        ("C, because of the bell", "C"),
        ("The answer is B.", "B"),
        ("Option D", "D"),
        ("I would say (A)", "A"),
        ("a dog", "A"),
        ("A dog barks.", None),
        ("A, B", None),
        ("Option A or option B", None),
        ("Answer: A or B", None),
        ("A. B.", None),
        ("(A) a dog (B) a bell", None),
        ("E", None),
        ("", None),
    ],
)
def test_the_letter_of_a_choice(answer, letter):
    assert chosen_letter(answer, ["A dog", "a cat", "a bell", "none"]) == letter
