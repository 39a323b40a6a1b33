"""Every way to generate, in batches with clips in some rows only."""

import copy
import inspect
import logging
import warnings

import pytest
import torch
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM, TextIteratorStreamer

from moss_audio import MossAudioModel
from moss_audio.modeling_moss_audio import CACHE_NAME
from tests.conftest import rows_alone, waveform


CLIPS_PER_ROW = [1, 0, 2, 1]
OPTIONS = {"max_new_tokens": 12, "eos_token_id": None, "do_sample": False}


def new_tokens(model, batch, **options):
    ids = model.generate(**batch, **{**OPTIONS, **options})
    prompt = batch["input_ids"].shape[1] if "input_ids" in batch else 0
    return ids[:, prompt:]


@pytest.fixture(scope="module")
def greedy(model, mixed_batch):
    return new_tokens(model, mixed_batch)


@pytest.fixture(scope="module")
def alone(mixed_batch):
    return rows_alone(mixed_batch, CLIPS_PER_ROW)


def test_without_a_cache(model, mixed_batch, greedy):
    assert torch.equal(new_tokens(model, mixed_batch, use_cache=False), greedy)


def test_sampling_is_reproducible_and_varies(model, mixed_batch):
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(new_tokens(model, mixed_batch, do_sample=True, temperature=1.5))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_beam_search_gives_each_row_its_own_beams(model, mixed_batch, alone, greedy):
    together = new_tokens(model, mixed_batch, num_beams=3)
    for row, inputs in enumerate(alone):
        assert torch.equal(together[row], new_tokens(model, inputs, num_beams=3)[0]), row
    assert not torch.equal(together, greedy)


def test_beam_search_without_a_cache(model, mixed_batch):
    expected = new_tokens(model, mixed_batch, num_beams=3)
    assert torch.equal(new_tokens(model, mixed_batch, num_beams=3, use_cache=False), expected)


def test_beam_search_scores_are_the_models(model, alone):
    """The best beam's score is the likelihood that one forward pass over prompt, clips and answer gives."""
    for inputs in alone:
        best = model.generate(
            **inputs, **OPTIONS, num_beams=4, length_penalty=0.0, return_dict_in_generate=True, output_scores=True
        )
        ids, prompt = best.sequences, inputs["input_ids"].shape[1]
        whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            likely = model(**whole).logits[:, prompt - 1 : -1].log_softmax(-1).gather(2, ids[:, prompt:, None]).sum()
        torch.testing.assert_close(best.sequences_scores[0], likely, atol=1e-4, rtol=0)


def test_beam_sampling(model, mixed_batch):
    torch.manual_seed(0)
    names = ("return_dict_in_generate", "output_scores")
    sampled = model.generate(
        **mixed_batch,
        **{**OPTIONS, "do_sample": True},
        num_beams=3,
        length_penalty=0.0,
        top_k=0,
        **dict.fromkeys(names, True),
    )
    scores = model.compute_transition_scores(sampled.sequences, sampled.scores, sampled.beam_indices)
    assert sampled.sequences.shape == (4, mixed_batch["input_ids"].shape[1] + 12)
    # Each row's score is the likelihood of its answer beside its own clips.
    prompt = mixed_batch["input_ids"].shape[1]
    mask = torch.cat((mixed_batch["attention_mask"], torch.ones(4, 12, dtype=torch.long)), dim=1)
    whole = {**mixed_batch, "input_ids": sampled.sequences, "attention_mask": mask}
    with torch.no_grad():
        steps = model(**whole).logits[:, prompt - 1 : -1].log_softmax(-1)
    likely = steps.gather(2, sampled.sequences[:, prompt:, None]).squeeze(2).sum(1)
    torch.testing.assert_close(sampled.sequences_scores, likely, atol=1e-3, rtol=0)
    assert scores.shape == (4, 12)


@pytest.mark.parametrize("options", [{"num_beams": 4}, {"do_sample": True}], ids=["beams", "samples"])
def test_several_answers_a_row(options, model, mixed_batch):
    torch.manual_seed(0)
    answers = new_tokens(model, mixed_batch, num_return_sequences=3, **options).view(4, 3, 12)
    for row in answers:
        assert not torch.equal(row[0], row[1])
    if "num_beams" in options:
        assert torch.equal(answers[:, 0], new_tokens(model, mixed_batch, **options))


def test_several_greedy_rows_by_hand(model, mixed_batch, greedy):
    """Rows and clips repeated by the caller, as generate repeats them."""
    rows = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    clips = torch.tensor([0, 0, 1, 2, 1, 2, 3, 3])
    batch = {name: mixed_batch[name][rows] for name in ("input_ids", "attention_mask")}
    batch.update({name: mixed_batch[name][clips] for name in ("audio_data", "audio_data_seqlens")})
    assert torch.equal(new_tokens(model, batch), greedy[rows])


def test_prompt_lookup(model, alone):
    for inputs in alone:
        options = {"eos_token_id": 319}  # version 4 of Transformers cannot look up prompts without one
        expected = new_tokens(model, inputs, **options)
        assert torch.equal(new_tokens(model, inputs, prompt_lookup_num_tokens=3, **options), expected)


def test_assisted_by_its_like(model, alone):
    assistant = copy.deepcopy(model)  # version 4 of Transformers changes the assistant's generation configuration
    for inputs in alone:
        expected = new_tokens(model, inputs)
        assert torch.equal(new_tokens(model, inputs, assistant_model=assistant), expected)


def test_assisted_by_a_smaller_model_that_listens(model, alone):
    config = type(model.config)(**model.config.to_dict())
    config.language_config.num_hidden_layers = 3
    config.language_config.layer_types = config.language_config.layer_types[:3]
    torch.manual_seed(0)
    assistant = MossAudioModel(config).eval()
    calls, encode = [], assistant.get_audio_features
    assistant.get_audio_features = lambda *args, **kwargs: calls.append(1) or encode(*args, **kwargs)
    for inputs in alone:
        calls.clear()
        assert torch.equal(new_tokens(model, inputs, assistant_model=assistant), new_tokens(model, inputs))
        assert len(calls) == int("audio_data" in inputs)  # what its cache holds is not encoded again


@pytest.mark.parametrize("implementation", ["static", "dynamic", "offloaded"])
def test_caches(implementation, model, mixed_batch, greedy):
    if implementation == "offloaded" and not torch.cuda.is_available():
        pytest.skip("an offloaded cache needs an accelerator to be offloaded from")
    assert torch.equal(new_tokens(model, mixed_batch, cache_implementation=implementation), greedy)


def test_a_quantized_cache(model, mixed_batch):
    pytest.importorskip("optimum.quanto", reason="a quantized cache needs the package optimum-quanto")
    options = {"return_dict_in_generate": True, "output_logits": True, **OPTIONS}
    exact = model.generate(**mixed_batch, **options)
    config = {"backend": "quanto", "nbits": 4, "q_group_size": 16}
    rough = model.generate(**mixed_batch, **options, cache_implementation="quantized", cache_config=config)
    assert torch.equal(rough.logits[0], exact.logits[0])  # the prompt is read before anything is quantized
    assert not torch.equal(rough.logits[1], exact.logits[1])
    same = (rough.sequences == exact.sequences)[:, mixed_batch["input_ids"].shape[1]]
    likeness = torch.nn.functional.cosine_similarity(rough.logits[1], exact.logits[1])
    assert same.all() and (likeness > 0.95).all()


def test_from_embeddings(model, mixed_batch, greedy):
    embeds = model.get_input_embeddings()(mixed_batch["input_ids"])
    batch = {**mixed_batch, "inputs_embeds": embeds}
    del batch["input_ids"]
    assert torch.equal(new_tokens(model, batch), greedy)
    mask = mixed_batch["input_ids"] == model.config.audio_token_id
    assert torch.equal(new_tokens(model, {**batch, "audio_input_mask": mask}), greedy)
    assert torch.equal(new_tokens(model, batch, num_beams=3), new_tokens(model, mixed_batch, num_beams=3))


def test_embeddings_beside_audio(model, alone):
    inputs = alone[0]
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with torch.no_grad():
        expected = model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], **audio(inputs)).logits
        actual = model(**inputs).logits
    assert torch.equal(actual, expected)


def audio(inputs):
    return {name: inputs[name] for name in ("audio_data", "audio_data_seqlens")}


def test_stop_strings(model, alone, processor):
    printable = {"max_new_tokens": 30, "suppress_tokens": list(range(94, 320))}  # a character a token
    for inputs in alone:
        text = processor.decode(new_tokens(model, inputs, **printable)[0])
        stop = text[3:5]
        ids = new_tokens(model, inputs, **printable, stop_strings=[stop], tokenizer=processor.tokenizer)
        stopped = processor.decode(ids[0])
        assert stop in stopped and ids.shape[1] < 30 and text.startswith(stopped)


def test_stop_strings_in_a_batch(model, mixed_batch, alone, processor):
    options = {"max_new_tokens": 20, "suppress_tokens": list(range(94, 320)), "tokenizer": processor.tokenizer}
    options["eos_token_id"] = 319  # without one, Transformers does not pad the rows that have stopped
    texts = [processor.decode(new_tokens(model, inputs, **options)[0]) for inputs in alone]
    stops = [texts[0][4:6], texts[1][9:11]]
    together = new_tokens(model, mixed_batch, **options, stop_strings=stops)
    lengths = set()
    for row, inputs in zip(together, alone):
        (expected,) = new_tokens(model, inputs, **options, stop_strings=stops)
        assert torch.equal(row[: len(expected)], expected) and (row[len(expected) :] == 293).all()  # padding behind it
        lengths.add(len(expected))
    assert len(lengths) > 1


def test_a_streamer(model, alone, processor):
    for inputs in alone:
        streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True)
        ids = new_tokens(model, inputs, streamer=streamer)
        assert "".join(streamer) == processor.tokenizer.decode(ids[0])


def test_scores_logits_states_and_attentions(tiny_folder, mixed_batch):
    model = MossAudioModel.from_pretrained(tiny_folder, attn_implementation="eager").eval()
    names = ("output_scores", "output_logits", "output_hidden_states", "output_attentions")
    outputs = model.generate(**mixed_batch, **OPTIONS, return_dict_in_generate=True, **dict.fromkeys(names, True))
    assert len(outputs.scores) == len(outputs.logits) == 12 and outputs.logits[0].shape == (4, 320)
    prompt = mixed_batch["input_ids"].shape[1]
    assert [len(step) for step in outputs.hidden_states] == [5] * 12  # embeddings and four layers
    assert outputs.hidden_states[0][0].shape == (4, prompt, 64) and outputs.hidden_states[1][0].shape == (4, 1, 64)
    assert [len(step) for step in outputs.attentions] == [4] * 12
    assert outputs.attentions[0][0].shape == (4, 4, prompt, prompt)
    log_likelihoods = model.compute_transition_scores(outputs.sequences, outputs.scores, normalize_logits=True)
    assert log_likelihoods.shape == (4, 12) and (log_likelihoods <= 0).all()


# -------------------------------------------------------------------------------------------------------- several turns


def conversation(processor, turns):
    messages = []
    for clips, text, answer in turns:
        parts = [*({"type": "audio", "audio": clip} for clip in clips), {"type": "text", "text": text}]
        messages.append({"role": "user", "content": parts})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True)


@pytest.mark.parametrize("cache", ["dynamic", "none given"])
def test_a_second_turn_encodes_what_is_new(cache, model, processor, monkeypatch):
    first_clip, second_clip = waveform(1, 50000), waveform(2, 90000)
    first = conversation(processor, [([first_clip], "What?", None)])
    past = DynamicCache(config=model.config.language_config)
    options = {**OPTIONS, CACHE_NAME: past, "return_dict_in_generate": True}
    answer = model.generate(**first, **options).sequences
    # The conversation goes on after exactly the tokens that the cache holds, as a chat client keeps them.
    following = conversation(processor, [([second_clip], "And this?", None)])["input_ids"]
    after = following[:, (following == processor.tokenizer.convert_tokens_to_ids("<|im_start|>")).nonzero()[1, 1] :]
    ids = torch.cat((answer, after), dim=1)
    both = processor.pad([first, conversation(processor, [([second_clip], "And this?", None)])])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **audio(both)}
    expected = new_tokens(model, batch)

    encoded, encode = [], model.get_audio_features
    monkeypatch.setattr(
        model,
        "get_audio_features",
        lambda data, lengths, **kw: encoded.append(list(lengths)) or encode(data, lengths, **kw),
    )
    kept = {CACHE_NAME: past} if cache == "dynamic" else {}
    assert torch.equal(new_tokens(model, batch, **kept), expected)
    lengths = both["audio_data_seqlens"].tolist()
    assert encoded == [lengths[1:] if kept else lengths]


def test_a_second_turn_without_a_new_clip(model, processor, monkeypatch):
    first = conversation(processor, [([waveform(1, 50000)], "What?", None)])
    past = DynamicCache(config=model.config.language_config)
    answer = model.generate(**{**first, **OPTIONS, CACHE_NAME: past})
    question = processor.tokenizer("<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n", return_tensors="pt")["input_ids"]
    ids = torch.cat((answer, question), dim=1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = new_tokens(model, {**batch, **audio(first)})
    monkeypatch.setattr(model, "get_audio_features", lambda *args, **kwargs: pytest.fail("encoded again"))
    for given in ({}, audio(first)):  # the clips may be passed again or not: all are in the cache
        kept = DynamicCache(config=model.config.language_config)
        for layer in range(len(past)):
            keys, values = cached(past, layer)
            kept.update(keys[:, :, : answer.shape[1] - 1].clone(), values[:, :, : answer.shape[1] - 1].clone(), layer)
        assert torch.equal(new_tokens(model, {**batch, **given}, **{CACHE_NAME: kept}), expected)


def cached(past, layer):
    return past.layers[layer].keys, past.layers[layer].values


def test_second_turns_in_a_batch(model, processor, mixed_batch):
    """Clips in some rows only, then and now."""
    past = DynamicCache(config=model.config.language_config)
    answer = model.generate(**{**mixed_batch, **OPTIONS, CACHE_NAME: past})
    mask = torch.cat(
        (mixed_batch["attention_mask"], torch.ones(4, OPTIONS["max_new_tokens"], dtype=torch.long)), dim=1
    )
    turns = [
        conversation(processor, [(clips, "And this?", None)])
        for clips in ([], [waveform(5, 30000)], [waveform(6, 70000)], [])
    ]
    following = processor.pad(turns)
    order = [0, 4, 1, 2, 5, 3]  # row by row: old clips, then new ones
    data = [*mixed_batch["audio_data"], *following["audio_data"]]
    frames = max(clip.shape[1] for clip in data)
    data = torch.stack([torch.nn.functional.pad(clip, (0, frames - clip.shape[1])) for clip in data])[order]
    lengths = torch.cat((mixed_batch["audio_data_seqlens"], following["audio_data_seqlens"]))[order]
    batch = {
        "input_ids": torch.cat((answer, following["input_ids"]), dim=1),
        "attention_mask": torch.cat((mask, following["attention_mask"]), dim=1),
        "audio_data": data,
        "audio_data_seqlens": lengths,
    }
    assert torch.equal(new_tokens(model, batch, **{CACHE_NAME: past}), new_tokens(model, batch))


def test_a_cache_that_ends_inside_a_clip_is_refused(model, alone):
    inputs = alone[0]
    middle = int((inputs["input_ids"][0] == model.config.audio_token_id).nonzero()[5])
    past = DynamicCache(config=model.config.language_config)
    with torch.no_grad():
        model(input_ids=torch.ones(1, middle, dtype=torch.long), use_cache=True, **{CACHE_NAME: past})
    with pytest.raises(ValueError, match="The cache ends inside clip 0, after 5 of its"):
        model.generate(**{**inputs, **OPTIONS, CACHE_NAME: past})


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_the_cache_by_either_name(name, model, alone):
    ids, past = torch.arange(1, 17)[None], DynamicCache(config=model.config.language_config)
    with torch.no_grad():
        expected = model(input_ids=ids).logits[:, 10:]
        outputs = model(input_ids=ids[:, :10], use_cache=True, **{name: past})
        assert outputs[CACHE_NAME] is past and past.get_seq_length() == 10
        torch.testing.assert_close(model(input_ids=ids[:, 10:], **{name: past}).logits, expected, atol=1e-5, rtol=0)
    if name in ("past_key_values", CACHE_NAME):  # what `generate` of the installed version understands
        past = DynamicCache(config=model.config.language_config)
        answer = new_tokens(model, alone[0], **{name: past})
        assert torch.equal(answer, new_tokens(model, alone[0]))
        assert past.get_seq_length() == alone[0]["input_ids"].shape[1] + answer.shape[1] - 1


def test_the_signature_names_the_cache_as_a_plain_qwen3_does(model):
    names, plain = ([*inspect.signature(each.forward).parameters] for each in (model, Qwen3ForCausalLM))
    assert names[:5] == plain[1:6] and {"cache", "past_key_values"} & {*names} == {CACHE_NAME}


def test_no_name_of_ours_is_deprecated(model, mixed_batch, monkeypatch):
    told = []
    monkeypatch.setattr(logging.Logger, "warning_once", lambda self, message, *args, **kw: told.append(message))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        new_tokens(model, mixed_batch, num_beams=2, **{CACHE_NAME: DynamicCache(config=model.config.language_config)})
        with torch.no_grad():
            model(**mixed_batch, use_cache=True).to_tuple()
    assert not [message for message in told if "deprecated" in message]


# ------------------------------------------------------------------------------------------------- what decoding costs


def decoding_step(model, cache_length=16):
    past = DynamicCache(config=model.config.language_config)
    with torch.no_grad():
        model(input_ids=torch.ones(1, cache_length, dtype=torch.long), use_cache=True, **{CACHE_NAME: past})
    return {
        "input_ids": torch.ones(1, 1, dtype=torch.long),
        "attention_mask": torch.ones(1, cache_length + 1, dtype=torch.long),
        CACHE_NAME: past,
        "use_cache": True,
    }


def test_a_decoding_step_is_that_of_a_plain_qwen3(model):
    """The same operators in the same number: DeepStack costs nothing once the prompt is read."""
    config = Qwen3Config(**{**model.config.language_config.to_dict()})
    plain = Qwen3ForCausalLM(config).eval()
    counts = []
    for each in (model, plain):
        step = decoding_step(each) if each is model else {**decoding_step(model)}
        with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            each(**step)
        counts.append({event.key: event.count for event in profile.key_averages() if event.key.startswith("aten::")})
    assert counts[0] == counts[1]


def test_nothing_in_decoding_waits_for_the_device(model, mixed_batch, monkeypatch):
    """Values are read back in the first step only, to place the clips."""
    steps, waits = [], []
    forward = model.language_model.forward
    monkeypatch.setattr(model.language_model, "forward", lambda *args, **kw: steps.append(1) or forward(*args, **kw))

    def watch(name):
        original = getattr(torch.Tensor, name)

        def watched(self, *args, **kwargs):
            if any("modeling_moss_audio" in frame.filename for frame in inspect.stack()[1:2]):
                waits.append((name, len(steps)))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, watched)

    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "nonzero", "cpu", "numpy"):
        watch(name)
    new_tokens(model, mixed_batch)
    assert len(steps) == 12
    assert waits and {step for _, step in waits} == {0}


def test_the_decoding_step_compiles_in_one_graph(tiny_folder):
    model = MossAudioModel.from_pretrained(tiny_folder).eval()
    from transformers import StaticCache

    past = StaticCache(config=model.config.language_config, max_cache_len=32)
    prompt = torch.arange(1, 17)[None]
    position = {"position_ids": torch.tensor([[16]])}
    with torch.no_grad():
        model(input_ids=prompt, use_cache=True, **{CACHE_NAME: past}, **positions_for(model, 0, 16))
        expected = model(input_ids=torch.cat((prompt, torch.tensor([[7]])), dim=1)).logits[:, -1]
        graphs = torch._dynamo.explain(model.forward)(
            input_ids=torch.tensor([[7]]),
            use_cache=True,
            **{CACHE_NAME: past},
            **position,
            **positions_for(model, 16, 1),
        )
        assert graphs.graph_break_count == 0
        compiled = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
        past.reset()
        model(input_ids=prompt, use_cache=True, **{CACHE_NAME: past}, **positions_for(model, 0, 16))
        actual = compiled(
            input_ids=torch.tensor([[7]]),
            use_cache=True,
            **{CACHE_NAME: past},
            **position,
            **positions_for(model, 16, 1),
        ).logits[:, -1]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def positions_for(model, start, count):
    """Version 4 of Transformers is told where in a static cache to write."""
    names = inspect.signature(model.language_model.forward).parameters
    return {"cache_position": torch.arange(start, start + count)} if "cache_position" in names else {}


@pytest.mark.parametrize("context", [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_inside_inference_mode_and_autocast(context, model, mixed_batch, greedy):
    with context():
        answer = new_tokens(model, mixed_batch)
    assert answer.shape == greedy.shape
    if context is torch.inference_mode:
        assert torch.equal(answer, greedy)
