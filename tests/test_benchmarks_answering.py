"""The benchmarks of whole models at a tiny size: tables of the right shape, equal answers on both sides, and no times."""

import json
import os
import sys
from importlib import import_module

import pytest
import torch

from moss_audio import MossAudioModel
from moss_audio.benchmarks import gpu, loading, measuring, models, quantization
from moss_audio.conversion.scaffold import scaffold
from moss_audio.training.evaluate import read_samples
from tests.conftest import DATA


def run(name, capsys, monkeypatch, tmp_path, *arguments):
    """The JSON of a benchmark that was run as a command, and what it printed."""
    module = import_module(f"moss_audio.benchmarks.{name}")
    path = tmp_path / "result.json"
    command = [name, "--device", "cpu", "--rounds", "1", "--json", str(path), *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", command)
    module.main()
    return json.loads(path.read_text()), capsys.readouterr().out


def check_table(result, printed, rows):
    """A table of so many full rows that stands in the output with all that goes below it."""
    assert len(result["rows"]) == rows and all(len(row) == len(result["header"]) for row in result["rows"])
    table = printed[printed.index("| " + " | ".join(result["header"])) :].splitlines()[: rows + 3]
    assert len({line.count("|") for line in table[:-1]}) == 1 and table[-1] == ""
    assert all(note in printed for note in result["notes"])
    assert result["device"] and {"moss_audio", "transformers", "torch", "python"} <= set(result["versions"])


def cost_here(function, *arguments, device="cpu", keep_result=True):
    """What `cost` gives, without a process, whose start takes seconds."""
    result = function(*arguments)()
    return measuring.Cost(1.0, 2.0, result)


# ---------------------------------------------------------------------------------------------------------- what they share


def test_a_cost_is_measured_in_a_process_of_its_own():
    spent = measuring.cost(allocate, 50_000_000)
    assert spent.result != os.getpid() and spent.seconds > 0
    assert 40 < spent.megabytes < 80


def allocate(count):
    prepared = torch.ones(3 * count, dtype=torch.uint8)  # does not count
    return lambda: (torch.ones(count, dtype=torch.uint8), prepared, os.getpid())[2]


def test_a_way_may_say_itself_how_long_it_took():
    taken = measuring.take_turns({"said": lambda: measuring.Seconds(7), "measured": lambda: 7.0}, 2)
    assert taken["said"] == [7, 7] and all(seconds < 1 for seconds in taken["measured"])


@pytest.fixture(scope="module")
def model():
    return models.make_model(models.make_config("tiny"), torch.float32)


def test_a_model_made_in_place_is_complete(model, tmp_path):
    """It answers as it does after saving and loading: nothing is left that was not computed."""
    model.save_pretrained(tmp_path)
    loaded = MossAudioModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    inputs = models.prompts(models.make_processor("tiny"), model, [1.0, 1.5], 0)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, loaded(**inputs).logits)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("size", ["0.6b", "4b", "8b"])
def test_large_sizes_have_the_released_tokens(size, monkeypatch):
    config = models.make_config(size)
    assert (config.audio_token_id, config.vocab_size) == (151654, 151936)
    assert models.make_config(size, small_encoder=True).audio_config.d_model == 64
    with torch.device("meta"):
        model = MossAudioModel(config)
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert abs(parameters - {"0.6b": 1.513, "4b": 5.223, "8b": 9.052}[size]) < 0.01


def test_steps_are_counted_and_their_bytes(model):
    inputs = models.prompts(models.make_processor("tiny"), model, [1.0], 0)
    clock = models.StepClock()
    assert models.generate(model, inputs, 4, clock).shape == (1, 4) and len(clock.steps()) == 3
    decoder = sum(parameter.numel() for parameter in model.language_model.layers.parameters())
    assert models.bytes_per_step(model) == 4 * (decoder + 64 + 320 * 64)


def test_an_attempt_says_what_went_wrong():
    def fail(error):
        raise error

    notes = []
    cells = [
        models.attempt(lambda error=error: fail(error), "this", notes)
        for error in (torch.OutOfMemoryError("all gone"), ImportError("no torchao"), ValueError("two\nlines"))
    ]
    assert cells == ["out of memory", "package missing", "failed"] and models.attempt(lambda: 3, "that", notes) == 3
    assert notes[2] == "this: failed (ValueError: two lines)."


# ---------------------------------------------------------------------------------------------------------------- scripts


def test_decoding_step(capsys, monkeypatch, tmp_path):
    arguments = ("--size", "tiny", "--lengths", 5, 40, "--steps", 2)
    result, printed = run("decoding_step", capsys, monkeypatch, tmp_path, *arguments)
    check_table(result, printed, rows=4)
    assert [row[:2] for row in result["rows"]] == [[n, place] for n in (5, 40) for place in ("forward", "generate")]


def test_decoding_step_refuses_other_weights(model):
    from moss_audio.benchmarks.decoding_step import check_same, filled_cache, plain_decoder

    plain, cache = plain_decoder(model), filled_cache(model, 5, 0)
    check_same(model, plain, cache)
    assert cache.get_seq_length() == 5
    plain.lm_head = torch.nn.Linear(64, 320, bias=False)
    with pytest.raises(RuntimeError, match="the logits differ"):
        check_same(model, plain, cache)


def test_prefill_memory(capsys, monkeypatch, tmp_path):
    from moss_audio.benchmarks import prefill_memory

    monkeypatch.setattr(prefill_memory, "cost", cost_here)
    result, printed = run("prefill_memory", capsys, monkeypatch, tmp_path, "--size", "tiny", "--seconds", 2)
    check_table(result, printed, rows=3)
    right = {way: [1.0, 2.0] for way in (prefill_memory.GENERATE, prefill_memory.LAST, prefill_memory.EVERY)}
    with pytest.raises(RuntimeError, match="off by"):
        prefill_memory.check_same({**right, prefill_memory.LAST: [2.0, 1.0]})


def test_batching(capsys, monkeypatch, tmp_path):
    arguments = ("--size", "tiny", "--clips", 3, "--seconds", 1, "--tokens", 4)
    result, printed = run("batching", capsys, monkeypatch, tmp_path, *arguments)
    check_table(result, printed, rows=2)
    values = result["values"]
    assert len(values["same"]) == 3
    for name, whole, first, *_ in result["rows"]:
        assert (values["seconds"][name], values["seconds"][f"{name}, one token"]) == ([whole], [first])
    assert (
        " 3 different answers" in printed or " 2 different answers" in printed
    )  # otherwise equality would mean nothing


def test_sorting(capsys, monkeypatch, tmp_path):
    arguments = ("--size", "tiny", "--clips", 4, "--seconds", 1, 3, "--batch-size", 2, "--rate", 2)
    result, printed = run("sorting", capsys, monkeypatch, tmp_path, *arguments)
    check_table(result, printed, rows=2)
    given, ordered = result["values"]["steps"]
    assert given >= ordered > 0


def test_batching_tells_what_is_faster(monkeypatch):
    """By a stand-in that takes 2 s for what comes before the first tokens in both ways, and 6 s or 1 s for the others."""
    from moss_audio.benchmarks import batching

    def take_turns(ways, rounds, device, warm):
        for way in ways.values():
            way()
        spent = {"one by one": 8.0, "a batch of 2": 3.0}
        return {name: [spent.get(name, 2.0)] * rounds for name in ways}

    monkeypatch.setattr(batching, "take_turns", take_turns)
    report = batching.measure("tiny", 2, 1.0, 4, torch.float32, 1, "cpu", 0)
    assert [row[1:4] for row in report.rows] == [[8.0, 2.0, 1.0], [3.0, 2.0, 8 / 3]]
    assert report.notes[0].startswith("Tokens a second, in batches over one by one: 2.67 ")
    assert report.notes[1].startswith("The same of all tokens but the first: 6 ")


def test_sorting_knows_where_a_batch_begins():
    """Also where its prompts are as long as those of the batch before with its answers."""
    from moss_audio.benchmarks.sorting import EndsInProportion

    ends = EndsInProportion(9, 0.5)  # a token for two of sound
    first, second = torch.tensor([[0, 1, 9, 9], [1, 9, 9, 9]]), torch.tensor([[1, 9, 9, 9, 9, 5], [1, 5, 9, 9, 9, 5]])
    ended = []
    for prompts in (first, second):
        for count in (1, 2):
            ended.append(ends(torch.cat([prompts, torch.full((2, count), 7)], 1), None).tolist())
    assert ended == [[True, False], [True, True], [False, False], [True, True]]
    assert ends.steps == 4


def test_what_two_answers_have_in_common():
    from moss_audio.benchmarks.batching import common

    assert [common(*pair) for pair in (("abcd", "abcd"), ("abcd", "abxd"), ("abcd", "ab"), ("ab", "abcd"))] == [
        1.0,
        0.5,
        0.5,
        1.0,
    ]


def test_loading(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "cost", cost_here)
    arguments = ("--size", "tiny", "--folder", tmp_path / "checkpoint")
    result, printed = run("loading", capsys, monkeypatch, tmp_path, *arguments)
    check_table(result, printed, rows=2)
    assert (tmp_path / "checkpoint" / "config.json").exists()


def test_loading_notices_other_tensors(monkeypatch, tmp_path):
    folder = str(scaffold(str(tmp_path / "one"), "tiny"))
    assert loading.prepare_check(folder, "cpu")() == []
    loaded = loading.load(folder, "cpu")
    loaded.lm_head.weight.data += 1
    monkeypatch.setattr(loading, "load", lambda folder, device: loaded)
    assert loading.prepare_check(folder, "cpu")() == ["lm_head.weight"]


def data_file(folder):
    path = folder / "data.jsonl"
    question = [
        {"type": "audio", "path": str(DATA / "beeps.wav")},
        {"type": "text", "text": "How many?"},
    ]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "3."}]
    path.write_text(json.dumps({"task": "count", "messages": messages}) + "\n")
    return path


def test_quantization(capsys, monkeypatch, tmp_path):
    """Without torchao its rows say so, and the others are there."""
    arguments = ("--size", "tiny", "--seconds", 1, "--steps", 2, "--kinds", "int8", "int4", "--tokens", 2)
    trained = ("--model", DATA / "model_tiny", "--data", data_file(tmp_path))
    result, printed = run("quantization", capsys, monkeypatch, tmp_path, *arguments, *trained)
    check_table(result, printed, rows=4)
    assert result["header"][-1] == "count: accuracy"
    speeds = {row[0]: row[1] for row in result["rows"]}
    assert speeds["float32"] > 0 and speeds["bfloat16"] > 0
    try:
        import torchao.quantization  # noqa: F401
    except ImportError:
        assert speeds["int8 weights"] == speeds["int4 weights"] == "package missing"
        assert any("accuracy of int4 weights: package missing" in note for note in result["notes"])
    else:
        assert speeds["int8 weights"] > 0 and speeds["int4 weights"] > 0
        megabytes = [row[3] for row in result["rows"]]
        assert megabytes == sorted(megabytes, reverse=True)


@pytest.mark.parametrize("kind", ["int8", "int8-dynamic", "int4"])
def test_quantized_weights_answer_nearly_the_same(kind):
    pytest.importorskip("torchao.quantization")
    plain, quantized = (quantization.make_variant(each, "tiny", "cpu", 0) for each in ("bfloat16", kind))
    assert models.weight_bytes(quantized) < models.weight_bytes(plain)
    inputs = models.prompts(models.make_processor("tiny"), plain, [1.0], 0)
    with torch.no_grad():
        expected, logits = (each(**inputs).logits.float() for each in (plain, quantized))
    # A step of int4 is 0.3 standard deviations of normal weights in groups of 32, which is an error of 9 % a layer; nine
    # layers add up to 27 %. Logits that have nothing to do with each other are 141 % apart.
    assert 0 < (logits - expected).norm() / expected.norm() < (0.4 if kind == "int4" else 0.05)


def test_quantization_wants_data_for_a_model(capsys, monkeypatch, tmp_path):
    with pytest.raises(SystemExit):
        run("quantization", capsys, monkeypatch, tmp_path, "--model", DATA / "model_tiny")
    assert "--model and --data go together" in capsys.readouterr().err
    assert read_samples(data_file(tmp_path))[0].task == "count"
    monkeypatch.setattr(quantization, "measure_speed", None)  # data that cannot be read is noticed before
    with pytest.raises(SystemExit, match="no.jsonl"):
        run("quantization", capsys, monkeypatch, tmp_path, "--model", DATA / "model_tiny", "--data", "no.jsonl")


def test_gpu_on_a_cpu(capsys, monkeypatch, tmp_path):
    """All of it but the CUDA graphs."""
    shape = ("--sizes", "tiny", "--seconds", 1, 2, "--batches", 1, 2, "--steps", 3, "--kinds", "bfloat16", "int4")
    result, printed = run("gpu", capsys, monkeypatch, tmp_path, *shape)
    assert list(result) == [f"tiny: {part}" for part in gpu.PARTS]
    counts = {"first-token": 4, "encoder": 4, "decoding": 8, "longest": 1}
    for part, count in counts.items():
        check_table(result[f"tiny: {part}"], printed, count)
    decoding = {(row[1], row[2]): row for row in result["tiny: decoding"]["rows"]}
    for batch in (1, 2):
        assert decoding[batch, "static, compiled"][3] == "not on this device"
        ran = [row for (rows, _), row in decoding.items() if rows == batch and not isinstance(row[3], str)]
        assert len(ran) == 3 and all(row[-1] == "100%" for row in ran)  # the same tokens
    (longest,) = result["tiny: longest"]["rows"]
    assert longest[:3] == ["tiny", 143, "the decoder's 2048 positions"]
    assert result["tiny: quantization"]["rows"][0][-1] == 0


def test_gpu_wants_one_for_large_models(capsys, monkeypatch, tmp_path):
    with pytest.raises(SystemExit):
        run("gpu", capsys, monkeypatch, tmp_path)
    assert "there is no GPU; `--sizes tiny" in capsys.readouterr().err


def test_the_longest_clip_is_searched_for_where_memory_ends(monkeypatch, tmp_path):
    class Options:
        device, seed, rounds = "cpu", 0, 1

    bench = gpu.Bench("tiny", Options)
    fits = 37

    def generate(model, inputs, steps):
        if inputs["audio_data_seqlens"].max() > 100 * fits:
            raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(gpu, "generate", generate)
    (row,) = gpu.longest(bench).rows
    assert row[:3] == ["tiny", fits, "out of memory"]
    assert bench.notes and "OutOfMemoryError: no more" in bench.notes[-1]
