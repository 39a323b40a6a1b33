"""The README's snippets run as they are, on the tiny checkpoint instead of a published one."""

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import DATA


README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
FINETUNING = re.search(r"^## Fine-tuning\n.*?(?=^## )", README, flags=re.DOTALL | re.MULTILINE)[
    0
]  # see test_finetuning_readme.py
SNIPPETS = re.findall(r"```python\n(.*?)```", README.replace(FINETUNING, ""), flags=re.DOTALL)


@pytest.fixture(scope="module")
def namespace(tmp_path_factory):
    """What the snippets have in common: names of the snippets before, and the recordings beside them."""
    folder = tmp_path_factory.mktemp("readme")
    for name, source in {"recording.wav": "beeps.wav", "a.wav": "beeps.wav", "b.mp3": "speech.mp3"}.items():
        shutil.copy(DATA / source, folder / name)
    before = os.getcwd()
    os.chdir(folder)
    yield {}
    os.chdir(before)


def test_the_readme_has_snippets():
    assert len(SNIPPETS) >= 5


@pytest.mark.parametrize("index", range(len(SNIPPETS)))
def test_a_snippet_runs(index, namespace, tiny_folder):
    code = SNIPPETS[index].replace("OpenMOSS-Team/MOSS-Audio-4B-Instruct", tiny_folder.as_posix())
    code = code.replace("generate(**inputs)", "generate(**inputs, max_new_tokens=8)")
    exec(compile(code, f"README snippet {index}", "exec"), namespace)
    if "pipe" in namespace:  # the answers of random weights do not end
        namespace["pipe"].model.generation_config.max_new_tokens = 8
        if hasattr(namespace["pipe"], "generation_config"):
            namespace["pipe"].generation_config.max_new_tokens = 8


def test_what_the_snippets_made(namespace):
    assert set(namespace["result"]) == {"generated_text", "reasoning"}
    assert len(namespace["answers"]) == 3
    tokens = int((namespace["inputs"]["audio_data_seqlens"] + 7).div(8, rounding_mode="floor").sum())
    assert namespace["features"].pooler_output.shape == (tokens, 64)


def test_the_longest_clip_in_the_readme():
    from moss_audio.configuration_moss_audio import longest_clip_seconds

    assert "room for a clip of about 47 minutes" in README
    assert longest_clip_seconds(40960, text_tokens=30) // 60 == 47
