"""The snippets of the README and of docs/results.md run as they are, on the tiny checkpoint instead of a published one."""

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import DATA


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# That section has a test of its own, test_finetuning_readme.py.
FINETUNING = re.search(r"^## Fine-tuning\n.*?(?=^## )", README, flags=re.DOTALL | re.MULTILINE)[0]
PAGES = {
    "README": README.replace(FINETUNING, ""),
    "docs/results": (ROOT / "docs" / "results.md").read_text(encoding="utf-8"),
}
SNIPPETS = [
    (page, index, code)
    for page, text in PAGES.items()
    for index, code in enumerate(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
]


@pytest.fixture(scope="module")
def namespaces(tmp_path_factory):
    """What the snippets of a page have in common: names of the snippets before, and the recordings beside them."""
    folder = tmp_path_factory.mktemp("readme")
    for name, source in {"recording.wav": "beeps.wav", "a.wav": "beeps.wav", "b.mp3": "speech.mp3"}.items():
        shutil.copy(DATA / source, folder / name)
    before = os.getcwd()
    os.chdir(folder)
    yield {page: {} for page in PAGES}
    os.chdir(before)


def test_the_pages_have_snippets():
    assert all(sum(page == name for page, _, _ in SNIPPETS) >= 5 for name in PAGES)


@pytest.mark.parametrize("page, index, code", SNIPPETS, ids=[f"{page} {index}" for page, index, _ in SNIPPETS])
def test_a_snippet_runs(page, index, code, namespaces, tiny_folder):
    namespace = namespaces[page]
    code = code.replace("OpenMOSS-Team/MOSS-Audio-4B-Instruct", tiny_folder.as_posix())
    code = code.replace("generate(**inputs)", "generate(**inputs, max_new_tokens=8)")
    exec(compile(code, f"{page} snippet {index}", "exec"), namespace)
    if "pipe" in namespace:  # the answers of random weights do not end
        namespace["pipe"].model.generation_config.max_new_tokens = 8
        if hasattr(namespace["pipe"], "generation_config"):
            namespace["pipe"].generation_config.max_new_tokens = 8


def test_the_small_checkpoint_answers_what_the_readme_says(capsys):
    said, code = re.search(r"this prints\s`(.*?)`:?\n\n```python\n(.*?)```", README, flags=re.DOTALL).groups()
    exec(code, {})
    assert capsys.readouterr().out == f"{said}\n"


def test_what_the_snippets_made(namespaces):
    namespace = namespaces["README"]
    assert set(namespace["result"]) == {"generated_text", "reasoning"}
    assert len(namespace["answers"]) == 3
    tokens = int((namespace["inputs"]["audio_data_seqlens"] + 7).div(8, rounding_mode="floor").sum())
    assert namespace["features"].pooler_output.shape == (tokens, 64)


def test_the_longest_clip_in_the_readme():
    from moss_audio.configuration_moss_audio import longest_clip_seconds

    assert "room for a clip of about 47 minutes" in README
    assert longest_clip_seconds(40960, text_tokens=30) // 60 == 47
