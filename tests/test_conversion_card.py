"""Model cards: their metadata, and every Python snippet of every one of them, run against a tiny checkpoint."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from moss_audio.conversion.card import ORGANISATION, Variant, describe, render_card, write_card
from moss_audio.conversion.convert import convert
from moss_audio.conversion.publish import name_in_card
from moss_audio.conversion.verify import CHECKS, PASSED, verify
from tests.conversion_helpers import TINY, run_python, write_wav


PARAMETERS = {"4B": 5_222_820_736, "8B": 9_052_463_488}
VARIANTS = [f"MOSS-Audio-{size}-{kind}" for size in PARAMETERS for kind in ("Instruct", "Thinking")]


def variant(name: str, model_id: str) -> Variant:
    _, _, size, kind = name.split("-")
    return Variant(model_id, name, f"{ORGANISATION}/{name}", kind == "Thinking", PARAMETERS[size], 40960)


def snippets(card: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def native(tmp_path_factory) -> Path:
    """A converted tiny checkpoint. Not to be changed."""
    return convert(str(TINY), str(tmp_path_factory.mktemp("card") / "native"))


@pytest.mark.parametrize("name", VARIANTS)
def test_metadata_and_contents(name):
    text = render_card(variant(name, f"someone/{name}"))
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "base_model": f"OpenMOSS-Team/{name}",
        "language": ["en", "zh"],
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "audio-text-to-text",
        "tags": ["moss-audio", "audio", "speech", "automatic-speech-recognition", "audio-captioning", "custom_code"],
    }
    assert f"# {name}\n" in text
    assert "{{ " not in text and "{%" not in text and "None" not in text.split("## Serving")[1]
    assert ("reasons in a `<think>` block before it answers" in text) is name.endswith("Thinking")
    assert f"vllm serve someone/{name} --trust-remote-code" in text and "was not tested here" in text
    sizes = {"4B": ("5.22 G", "10.45 GB", "20.89 GB"), "8B": ("9.05 G", "18.10 GB", "36.21 GB")}[name.split("-")[2]]
    for size in sizes:
        assert size in text
    assert "35.77 ms" in text and "2606.01802" in text and "not measured" in text
    assert max(map(len, text.splitlines())) <= 130


RUN = """
import json, types

class Completions:
    def create(self, **request):
        requests.append(request)
        message = types.SimpleNamespace(content="Good morning.")
        return types.SimpleNamespace(choices=[types.SimpleNamespace(message=message)])

class OpenAI:
    def __init__(self, base_url, api_key):
        self.chat = types.SimpleNamespace(completions=Completions())

requests = []
names = {}
for number, snippet in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))):
    if "openai" in snippet:  # not before Transformers has looked for the real one
        sys.modules["openai"] = types.SimpleNamespace(OpenAI=OpenAI)
    exec(compile(snippet, f"snippet {number}", "exec"), names)
names["model"].save_pretrained("saved")
names["processor"].save_pretrained("saved")
print(json.dumps(requests))
"""


@pytest.mark.parametrize("name", VARIANTS)
def test_every_snippet_runs_in_a_process_without_the_package(name, native, tmp_path):
    """
    As they are but for shorter answers: the tiny model never ends one by itself. vLLM's server is not here, so that the
    client is a stand-in that records what is sent.
    """
    blocks = snippets(render_card(variant(name, "native")))
    assert len(blocks) == 8
    shutil.copytree(native, tmp_path / "native")
    for seed, file in enumerate(("recording.wav", "a.wav", "b.wav")):
        write_wav(tmp_path / file, seed, 24000)
    blocks = [re.sub(r"max_new_tokens=\d+", "max_new_tokens=4", block) for block in blocks]
    (tmp_path / "snippets.json").write_text(json.dumps(blocks), encoding="utf-8")
    output = run_python(RUN, tmp_path / "snippets.json", cwd=tmp_path)
    [request] = json.loads(output.splitlines()[-1])
    sound, text = request["messages"][0]["content"]
    assert sound["input_audio"]["format"] == "wav" and sound["input_audio"]["data"].startswith("UklGR")  # "RIFF"
    assert text == {"type": "text", "text": "Transcribe the audio."}
    checks = itertools.islice(verify(str(tmp_path / "saved")), list(CHECKS).index("loading") - 1)
    assert [check for check in checks if check.verdict != PASSED] == []


def test_a_checkpoint_of_no_known_name_gets_a_card_without_claims(native, tmp_path):
    text = (native / "README.md").read_text(encoding="utf-8")
    card = ModelCard(text)
    assert card.data.base_model is None and "base_model" not in text
    assert "439,520 parameters" in text and 'model="native"' in text
    assert "This variant" not in text and "{{ " not in text


def test_the_card_of_a_folder_names_the_repository_that_it_goes_to(native, tmp_path):
    shutil.copytree(native, tmp_path / "native")
    name_in_card(tmp_path / "native", "someone/heard")
    text = (tmp_path / "native" / "README.md").read_text(encoding="utf-8")
    assert text == render_card(describe(native, "someone/heard", "model_tiny"))
    write_card(tmp_path / "native", "native", "model_tiny")
    assert (tmp_path / "native" / "README.md").read_bytes() == (native / "README.md").read_bytes()
