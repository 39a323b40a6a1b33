"""`push_to_hub` of model, processor and pipeline, to a stand-in for the Hub."""

import pytest

from tests.conftest import CODE_FILES
from tests.conversion_helpers import Hub, run_python


PUSH = """
from moss_audio import MossAudioModel, MossAudioProcessor
MossAudioModel.from_pretrained(sys.argv[1]).push_to_hub("someone/tuned", private=True)
MossAudioProcessor.from_pretrained(sys.argv[1]).push_to_hub("someone/tuned")
"""


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.close()


def test_model_and_processor_push_all_that_a_folder_needs(hub, tiny_folder, tmp_path):
    run_python(PUSH, tiny_folder, cwd=tmp_path, blocked=(), **hub.environment(tmp_path / "cache"))
    files = hub.uploads["someone/tuned"]
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "chat_template.jinja",
        "tokenizer_config.json",
        "tokenizer.json",
        *CODE_FILES,
    } <= set(files)
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    load = (
        "from transformers import pipeline\nimport numpy as np\n"
        "pipe = pipeline('audio-text-to-text', model=sys.argv[1], trust_remote_code=True, device='cpu')\n"
        "print(sorted(pipe(np.zeros(8000, dtype=np.float32), max_new_tokens=2)))"
    )
    assert run_python(load, folder, cwd=tmp_path).strip().endswith("['generated_text', 'reasoning']")
