"""A budget for thinking, in `generate` and in the pipeline: the transition is forced when it is spent."""

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, pipeline

import moss_audio
from moss_audio.generation_moss_audio import RELEASED_THINKING_TOKEN_IDS, TRANSITION, thinking_token_ids
from tests.conftest import waveform


CLIPS = [waveform(1, 30000), waveform(2, 9000), waveform(3, 20000)]


class Script(LogitsProcessor):
    """Makes the model answer with texts, one for each row of the prompt, found by how many tokens a row has generated."""

    def __init__(self, tokenizer, texts, prompt_length, beams=1):
        self.ids = [tokenizer(text)["input_ids"] for text in texts for _ in range(beams)]
        self.prompt_length = prompt_length

    def __call__(self, input_ids, scores):
        step = input_ids.shape[1] - self.prompt_length
        wanted = torch.tensor([ids[min(step, len(ids) - 1)] for ids in self.ids])
        return torch.full_like(scores, -50.0).scatter(1, wanted[:, None], 0.0)  # as log-probabilities are, for beams


def generate(model, processor, inputs, texts, **kwargs):
    """Answers to inputs of a model that would say `texts` if nothing kept it from it."""
    length, beams = inputs["input_ids"].shape[1], kwargs.get("num_beams", 1)
    script = Script(processor.tokenizer, texts, length, beams)
    options = {"max_new_tokens": 60 + len(processor.thinking_token_ids["transition"]), **kwargs}
    ids = model.generate(
        **inputs,
        logits_processor=LogitsProcessorList([script]),
        thinking_token_ids=processor.thinking_token_ids,
        **options,
    )
    return [processor.decode(row, skip_special_tokens=True) for row in ids[:, length:]]


THOUGHT = "<think>abcdefghijklmnopqrstuvwxyz"
SHORT = "<think>abc</think>Yes.<|im_end|>"
NONE = "No thought at all.<|im_end|>"


@pytest.fixture(scope="module")
def batch(processor):
    """Rows of different lengths, so that the padding on the left differs."""
    return processor(text=["What?", "A much longer question than the other ones.", "Why?"], audio=CLIPS)


def test_the_released_ids_are_those_of_the_released_tokenizer(qwen3_processor):
    assert qwen3_processor.thinking_token_ids == RELEASED_THINKING_TOKEN_IDS
    assert len(RELEASED_THINKING_TOKEN_IDS["transition"]) == 24
    assert qwen3_processor.decode(RELEASED_THINKING_TOKEN_IDS["transition"]) == TRANSITION


def expected(budget):
    """What `THOUGHT` becomes, as far as the transition."""
    return THOUGHT[: len("<think>") + budget] + TRANSITION


@pytest.mark.parametrize("budget", [0, 1, 5])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "temperature": 0.7, "top_k": 5},
        {"cache_implementation": "static"},
        {"num_beams": 3},
        {"num_beams": 2, "do_sample": True},
        {"prompt_lookup_num_tokens": 3, "rows": 1},
    ],
    ids=["greedy", "sampling", "static cache", "beams", "beam sampling", "assisted"],
)
def test_each_row_has_its_own_count(options, budget, model, processor, batch):
    options = dict(options)
    rows = options.pop("rows", 3)
    texts = [THOUGHT, SHORT, NONE]
    if rows == 1:
        batch = processor(text="What?", audio=CLIPS[0])
    torch.manual_seed(0)
    answers = generate(model, processor, batch, texts[:rows], thinking_budget=budget, **options)
    assert answers[0].startswith(expected(budget))
    if rows == 1:
        return
    # A row that has closed its block by itself in time, or opened none, is left alone.
    assert answers[2] == "No thought at all."
    assert (
        answers[1] == "<think>abc</think>Yes."
        if budget == 5
        else answers[1].startswith("<think>abc"[: len("<think>") + budget] + TRANSITION)
    )


def test_the_answer_follows_the_transition(model, processor, batch):
    free = len("<think>") + 3
    tail = "Seen from the end.<|im_end|>"
    length = len(processor.thinking_token_ids["transition"])
    script = "<think>" + "x" * (3 + length) + tail
    answers = generate(model, processor, batch, [script] * 3, thinking_budget=3)
    assert answers == [script[:free] + TRANSITION + "Seen from the end."] * 3


def test_a_block_that_closes_with_its_last_token_is_left_alone(model, processor, batch):
    answers = generate(model, processor, batch, [SHORT] * 3, thinking_budget=4)  # a, b, c, </think>
    assert answers == ["<think>abc</think>Yes."] * 3


def test_a_block_that_the_prompt_has_opened(model, processor):
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "<think>\nLet me"}]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, continue_final_message=True)
    answers = generate(model, processor, inputs, ["abcdefghijk" * 5], thinking_budget=4)
    assert answers[0].startswith("abcd" + TRANSITION)
    closed = processor.apply_chat_template(
        chat[:1], tokenize=True, return_dict=True, add_generation_prompt=True, enable_thinking=False
    )
    assert generate(model, processor, closed, ["An answer.<|im_end|>"], thinking_budget=0) == ["An answer."]


def test_a_question_about_the_tag_opens_no_block(model, processor):
    inputs = processor(text="What does <think> mean?")
    assert generate(model, processor, inputs, ["A tag.<|im_end|>"], thinking_budget=0) == ["A tag."]


def test_a_second_block_has_a_budget_of_its_own(model, processor):
    inputs = processor(text="What?")
    script = "<think>ab</think>So.<think>" + "c" * 50
    answer = generate(model, processor, inputs, [script], thinking_budget=3)[0]
    assert answer.startswith("<think>ab</think>So.<think>ccc" + TRANSITION)


def test_it_may_stand_in_a_generation_config(model, processor):
    inputs = processor(text="What?")
    config = GenerationConfig(thinking_budget=2, max_new_tokens=200, eos_token_id=295, pad_token_id=293)
    config.thinking_token_ids = processor.thinking_token_ids
    script = LogitsProcessorList([Script(processor.tokenizer, [THOUGHT], inputs["input_ids"].shape[1])])
    ids = model.generate(**inputs, generation_config=config, logits_processor=script)
    answer = processor.decode(ids[0, inputs["input_ids"].shape[1] :])
    assert answer.startswith("<think>ab" + TRANSITION)


def test_embeddings_as_prompt(model, processor):
    inputs = processor(text="What?")
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    ids = model.generate(
        inputs_embeds=embeds,
        attention_mask=inputs["attention_mask"],
        thinking_budget=2,
        thinking_token_ids=processor.thinking_token_ids,
        max_new_tokens=4,
        logits_processor=LogitsProcessorList([Script(processor.tokenizer, [THOUGHT], 0)]),
    )
    assert processor.decode(ids[0]).startswith("<think>ab\n")


@pytest.mark.parametrize("budget", [-1, 2.5, True])
def test_what_is_no_budget(budget, model, processor):
    with pytest.raises(ValueError, match=f"`thinking_budget` {budget} must be a number of tokens"):
        model.generate(
            **processor(text="What?"), thinking_budget=budget, thinking_token_ids=processor.thinking_token_ids
        )


def test_a_model_that_does_not_know_the_tokens_says_where_to_get_them(model, processor):
    with pytest.raises(ValueError, match="`thinking_token_ids=processor.thinking_token_ids`"):
        model.generate(**processor(text="What?"), thinking_budget=1)


def test_a_tokenizer_that_cannot_think():
    class Tokenizer:
        def get_vocab(self):
            return {"<|im_start|>": 0}

    with pytest.raises(ValueError, match="the tokenizer has no token <think>.*leave it out"):
        thinking_token_ids(Tokenizer())


def test_without_a_budget_nothing_is_forced(model, processor, batch):
    answers = generate(model, processor, batch, [THOUGHT, SHORT, NONE])
    assert answers[0].startswith(THOUGHT + "z") and answers[1:] == ["<think>abc</think>Yes.", "No thought at all."]


def test_the_pipeline_knows_its_tokens(tiny_folder, processor):
    pipe = pipeline("audio-text-to-text", model=str(tiny_folder), device="cpu")
    length = pipe.processor(text="What?", audio=CLIPS[0])["input_ids"].shape[1]
    script = LogitsProcessorList([Script(processor.tokenizer, [THOUGHT], length)])
    result = pipe(CLIPS[0], text="What?", thinking_budget=3, logits_processor=script, max_new_tokens=200)
    assert result["reasoning"] == ("abc" + TRANSITION).split("</think>")[0].strip()
    assert isinstance(result["generated_text"], str) and "Considering" not in result["generated_text"]
    pipe.model.generation_config.thinking_budget = 3  # as from generation_config.json
    assert pipe(CLIPS[0], text="What?", logits_processor=script, max_new_tokens=200) == result


def test_state_is_read_from_the_tokens(processor):
    """Rows in another order, as beams leave them, give the scores in that order."""
    ids = thinking_token_ids(processor.tokenizer)
    budget = moss_audio.ThinkingBudgetLogitsProcessor(2, ids, prompt_length=1)
    rows = [[0, ids["open"], 1, 2], [0, ids["open"], 1, ids["close"]], [0, 5, ids["open"], 1]]
    scores = torch.randn(3, 320)
    together = budget(torch.tensor(rows), scores)
    order = [2, 0, 1]
    assert torch.equal(budget(torch.tensor([rows[row] for row in order]), scores[order]), together[order])
    assert together[0].argmax() == ids["transition"][0] and together[0].isneginf().sum() == 319
    assert torch.equal(together[1:], scores[1:])
