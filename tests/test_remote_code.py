"""The files of `src/` inside a checkpoint, in a process that has never heard of the package."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor

import moss_audio
from tests.conftest import CODE, CODE_FILES, run_python, waveform


CLEAN = {"blocked": ["moss_audio", "librosa"]}

# A torchaudio that fails to import as those built against another torch or CUDA do.
BROKEN_TORCHAUDIO = 'raise OSError("libcudart.so.13: cannot open shared object file: No such file or directory")'
MISMATCHED_TORCHAUDIO = 'raise RuntimeError("PyTorch and TorchAudio were compiled with different CUDA versions")'

LOAD = """
import json, sys
import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, pipeline

folder = {folder!r}
clip = np.load({clip!r})
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(text="What?", audio=clip)
results = {{}}
for name in ("AutoModel", "AutoModelForCausalLM", "AutoModelForMultimodalLM"):
    if hasattr(transformers, name):
        model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
        results[name] = model(**inputs).logits[0, -1, :5].tolist()
pipe = pipeline("audio-text-to-text", model=folder, trust_remote_code=True, device="cpu")
results["answer"] = pipe(clip, text="What?", max_new_tokens=6)
results["batch"] = pipe([torch.from_numpy(clip), clip], text="What?", max_new_tokens=6, batch_size=2)
results["config"] = type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__module__
results["tokens"] = len(AutoTokenizer.from_pretrained(folder))
try:
    processor(text="What?", audio={wav!r})
except ImportError as error:
    results["path"] = str(error)
{more}
print("RESULTS" + json.dumps(results))
"""


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A clip as an array file and as a recording."""
    folder = tmp_path_factory.mktemp("clip")
    np.save(folder / "clip.npy", waveform(1, 70000))
    soundfile.write(folder / "clip.wav", waveform(1, 70000), 16000, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def expected(tiny_folder):
    model = moss_audio.MossAudioModel.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    processor = moss_audio.MossAudioProcessor.from_pretrained(tiny_folder)
    inputs = processor(text="What?", audio=waveform(1, 70000))
    pipe = moss_audio.AudioTextToTextPipeline(model=model, processor=processor, device="cpu")
    return {
        "logits": model(**inputs).logits[0, -1, :5].tolist(),
        "answer": pipe(waveform(1, 70000), text="What?", max_new_tokens=6),
    }


@pytest.fixture(scope="module")
def torchaudio(tmp_path_factory):
    """A folder with a torchaudio that does not import; an empty one where Transformers itself cannot bear that."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "torchaudio").mkdir()
    (folder / "torchaudio" / "__init__.py").write_text(BROKEN_TORCHAUDIO)
    bears = "try:\n    from transformers import AutoProcessor\n    print(True)\nexcept OSError:\n    print(False)"
    if run_python(bears, cwd=folder, path=[folder]).strip() == "False":
        shutil.rmtree(folder / "torchaudio")
    return folder


def load_cleanly(folder, clip, cwd, torchaudio, more="") -> dict:
    """Loads a folder through every door in a process without the package and librosa, with a broken torchaudio."""
    code = LOAD.format(folder=str(folder), clip=str(clip / "clip.npy"), wav=str(clip / "clip.wav"), more=more)
    output = run_python(code, cwd=cwd, path=[torchaudio], **CLEAN)
    return json.loads(output.rsplit("RESULTS", 1)[1])


def check(results: dict, expected: dict):
    for name in ("AutoModel", "AutoModelForCausalLM", "AutoModelForMultimodalLM"):
        if name in results:
            assert results[name] == pytest.approx(expected["logits"], abs=1e-5)
    assert results["answer"] == expected["answer"] and results["batch"] == [expected["answer"]] * 2
    assert results["config"].startswith("transformers_modules.")
    assert "needs librosa" in results["path"]


def test_a_folder_with_the_code_beside_it(native_folder, clip, expected, torchaudio, tmp_path):
    check(load_cleanly(native_folder, clip, tmp_path, torchaudio), expected)


def test_what_save_pretrained_writes_is_such_a_folder(tiny_folder, clip, expected, torchaudio, tmp_path):
    moss_audio.MossAudioModel.from_pretrained(tiny_folder).save_pretrained(tmp_path / "saved")
    moss_audio.MossAudioProcessor.from_pretrained(tiny_folder).save_pretrained(tmp_path / "saved")
    check(load_cleanly(tmp_path / "saved", clip, tmp_path, torchaudio), expected)
    for name in CODE_FILES:
        assert (tmp_path / "saved" / name).read_bytes() == (CODE / name).read_bytes()


def test_what_remote_code_saves_is_such_a_folder(native_folder, clip, expected, torchaudio, tmp_path):
    """Loaded in a clean process, saved there, loaded in another: nothing is lost on the way."""
    more = (
        f"model.save_pretrained({str(tmp_path / 'again')!r}); processor.save_pretrained({str(tmp_path / 'again')!r})"
    )
    (tmp_path / "first").mkdir()
    check(load_cleanly(native_folder, clip, tmp_path / "first", torchaudio, more), expected)
    shutil.rmtree(tmp_path / "first")
    (tmp_path / "second").mkdir()
    check(load_cleanly(tmp_path / "again", clip, tmp_path / "second", torchaudio), expected)
    for name in CODE_FILES:
        assert (tmp_path / "again" / name).read_bytes() == (CODE / name).read_bytes()


def test_the_package_loads_released_and_native_folders_without_remote_code(tiny_folder, native_folder, expected):
    for folder in (tiny_folder, native_folder):
        assert type(AutoConfig.from_pretrained(folder)) is moss_audio.MossAudioConfig
        processor = AutoProcessor.from_pretrained(folder)
        assert type(processor) is moss_audio.MossAudioProcessor
        inputs = processor(text="What?", audio=waveform(1, 70000))
        for auto in (AutoModel, AutoModelForCausalLM):
            model = auto.from_pretrained(folder, dtype=torch.float32).eval()
            assert type(model) is moss_audio.MossAudioModel
            assert model(**inputs).logits[0, -1, :5].tolist() == pytest.approx(expected["logits"], abs=1e-5)


BROKEN = """
import json, sys
import numpy as np
{load}
inputs = MossAudioProcessor.from_pretrained({folder!r})(text="a", audio=np.ones(8000), sampling_rate=8000)
print("RESULTS" + json.dumps(inputs["audio_data_seqlens"].tolist()))
"""


@pytest.mark.parametrize("torchaudio", [BROKEN_TORCHAUDIO, MISMATCHED_TORCHAUDIO], ids=["OSError", "RuntimeError"])
def test_the_package_works_with_a_torchaudio_that_does_not_import(torchaudio, tiny_folder, tmp_path):
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text(torchaudio)
    code = BROKEN.format(load="from moss_audio import MossAudioProcessor", folder=str(tiny_folder))
    assert run_python(code, cwd=tmp_path, path=[tmp_path]).endswith("RESULTS[100]\n")


def test_the_model_is_remote_code_with_a_torchaudio_that_does_not_import(native_folder, tmp_path):
    """Here even where Transformers itself cannot load a processor then."""
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text(BROKEN_TORCHAUDIO)
    code = (
        "from transformers import AutoModel\n"
        f"model = AutoModel.from_pretrained({str(native_folder)!r}, trust_remote_code=True)\n"
        "print(type(model).__name__)"
    )
    assert run_python(code, cwd=tmp_path, path=[tmp_path], **CLEAN).endswith("MossAudioModel\n")


@pytest.mark.parametrize("name", CODE_FILES)
def test_a_file_that_travels_imports_little(name):
    from transformers.dynamic_module_utils import get_imports

    assert set(get_imports(CODE / name)) <= {"torch", "transformers", "numpy", *_standard_library()}


@pytest.mark.parametrize("name", CODE_FILES)
def test_a_file_that_travels_imports_itself_all_that_it_needs(name):
    """Some versions of Transformers put the files that a file imports into their cache, but not what those import."""
    from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

    needed = {path.rsplit("/", 1)[-1] for path in map(str, get_relative_import_files(CODE / name))} - {name}
    assert needed == {f"{module}.py" for module in get_relative_imports(CODE / name)}


def _standard_library():
    import sys

    return sys.stdlib_module_names
