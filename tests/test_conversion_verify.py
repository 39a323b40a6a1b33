"""`moss-audio verify`: a whole folder passes, every defect fails its check, and foreign code is not run."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from moss_audio import MossAudioModel, MossAudioProcessor
from moss_audio.cli import app
from moss_audio.conversion import verify as module
from moss_audio.conversion.convert import convert
from moss_audio.conversion.target import MARKER
from moss_audio.conversion.verify import CHECKS, FAILED, PASSED, SKIPPED, verify
from tests.conversion_helpers import TINY, change, read, shard


@pytest.fixture(scope="module")
def native(tmp_path_factory) -> Path:
    """The converted tiny checkpoint. Not to be changed."""
    return convert(str(TINY), str(tmp_path_factory.mktemp("verify") / "native"))


@pytest.fixture
def folder(native, tmp_path) -> Path:
    """A copy of it to be damaged."""
    return Path(shutil.copytree(native, tmp_path / "native"))


@pytest.fixture
def without_loading(monkeypatch):
    """Leaves out the check that starts a process."""
    checks = {name: check for name, check in CHECKS.items() if name != "loading"}
    monkeypatch.setattr(module, "CHECKS", checks)


def test_a_converted_folder_passes_all_checks(native):
    checks = {check.name: check for check in verify(str(native), deep=True)}
    assert list(checks) == list(CHECKS)
    assert {check.verdict for check in checks.values()} == {PASSED}, checks
    assert checks["tensors"].detail.startswith("144 tensors and the leftover buffer")
    assert checks["loading"].detail.startswith("AutoConfig, AutoProcessor, pipeline, AutoModel, AutoModelForCausalLM")


def test_a_folder_that_the_model_saved_passes(native, tmp_path):
    MossAudioModel.from_pretrained(native).save_pretrained(tmp_path / "saved")
    MossAudioProcessor.from_pretrained(native).save_pretrained(tmp_path / "saved")
    assert [check for check in verify(str(tmp_path / "saved")) if check.verdict != PASSED] == []


def edit_tensor(folder, name, change_tensor):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    changed = change_tensor(tensors.pop(name))
    save_file({**tensors, **({} if changed is None else {name: changed})}, path, metadata={"format": "pt"})


def with_value(value):
    def set_value(tensor):
        tensor.flatten()[-1] = value
        return tensor

    return set_value


NAME = "audio_encoder.layers.2.fc1.weight"
DAMAGES = {
    "marker": ("complete", "INCOMPLETE", lambda f: (f / MARKER).write_text("{}", encoding="utf-8")),
    "part": ("complete", "part of a file", lambda f: (f / "model.safetensors.part").touch()),
    "no config": ("config.json", "no config.json", lambda f: (f / "config.json").unlink()),
    "released config": ("config.json", "`auto_map.AutoModel` is None", lambda f: shutil.copy(TINY / "config.json", f)),
    "no ids": ("config.json", "`audio_token_id` is missing", lambda f: change(f / "config.json", audio_token_id=None)),
    "tied at the top only": (
        "config.json",
        "`tie_word_embeddings` differs",
        lambda f: change(f / "config.json", tie_word_embeddings=True),
    ),
    "no theta": (
        "config.json",
        "falls back to 10000",
        lambda f: change(
            f / "config.json",
            language_config={k: v for k, v in read(f / "config.json")["language_config"].items() if k != "rope_theta"},
        ),
    ),
    "missing shard": (
        "weight files",
        "lacks 1",
        lambda f: (shard(f, 2), (f / "model-00001-of-00002.safetensors").unlink()),
    ),
    "missing tensor": ("tensors", f"missing: {NAME}", lambda f: edit_tensor(f, NAME, lambda tensor: None)),
    "shape": ("shapes", r"\(127, 64\), not \(128, 64\)", lambda f: edit_tensor(f, NAME, lambda tensor: tensor[1:])),
    "integers": ("dtypes", f"{NAME} is I32", lambda f: edit_tensor(f, NAME, torch.Tensor.int)),
    "dtype of the config": ("dtypes", "names 'float16'", lambda f: change(f / "config.json", dtype="float16")),
    "nan": (
        "values",
        f"1 tensors hold NaN or infinity: {NAME}",
        lambda f: edit_tensor(f, NAME, with_value(torch.nan)),
    ),
    "infinity": ("values", NAME, lambda f: edit_tensor(f, NAME, with_value(-torch.inf))),
    "no tokenizer": (
        "tokenizer",
        "has no tokenizer",
        lambda f: [(f / n).unlink() for n in ("vocab.json", "merges.txt")],
    ),
    "released tokenizer": (
        "tokenizer",
        r"<\|AUDIO\|> is None, not 300",
        lambda f: shutil.copy(TINY / "tokenizer_config.json", f),
    ),
    "padded with sound": (
        "tokenizer",
        r"padding token is '<\|AUDIO\|>'",
        lambda f: change(f / "tokenizer_config.json", pad_token="<|AUDIO|>"),
    ),
    "no processor config": (
        "processor_config.json",
        "no processor_config.json",
        lambda f: (f / "processor_config.json").unlink(),
    ),
    "other ids": (
        "processor_config.json",
        "`audio_end_id` is 301, in config.json 302",
        lambda f: change(f / "processor_config.json", audio_end_id=301),
    ),
    "fractions": (
        "processor_config.json",
        "`mel_config.mel_sr` is 16000.0, no int",
        lambda f: change(
            f / "processor_config.json",
            mel_config={**read(f / "processor_config.json")["mel_config"], "mel_sr": 16000.0},
        ),
    ),
    "no end": (
        "generation_config.json",
        r"does not hold <\|im_end\|>",
        lambda f: change(f / "generation_config.json", eos_token_id=1),
    ),
    "other template": (
        "chat template",
        "not '<|im_start|>system",
        lambda f: (f / "chat_template.jinja").write_text("{{ messages[0].role }}", encoding="utf-8"),
    ),
    "broken template": (
        "chat template",
        "cannot be rendered",
        lambda f: (f / "chat_template.jinja").write_text("{{ nothing.at.all }}", encoding="utf-8"),
    ),
    "no template": ("chat template", "no chat_template.jinja", lambda f: (f / "chat_template.jinja").unlink()),
    "no code": ("code files", "pipeline_moss_audio.py is missing", lambda f: (f / "pipeline_moss_audio.py").unlink()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_defect_fails_its_check(folder, damage, without_loading):
    name, message, make = DAMAGES[damage]
    make(folder)
    checks = {check.name: check for check in verify(str(folder), deep=True)}
    assert checks[name].verdict == FAILED, checks
    assert message.replace("\\", "") in checks[name].detail


def test_foreign_code_is_shown_and_not_run(folder, tmp_path):
    code = folder / "processing_moss_audio.py"
    code.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + code.read_text(encoding="utf-8"), encoding="utf-8")
    checks = {check.name: check for check in verify(str(folder))}
    assert checks["code files"].verdict == FAILED
    assert checks["code files"].detail == "processing_moss_audio.py is not the installed package's"
    assert checks["loading"].verdict == SKIPPED
    assert not (tmp_path / "ran").exists()


def test_code_that_the_config_names_elsewhere_is_not_run(folder, tmp_path):
    (folder / "other.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", encoding="utf-8")
    references = read(folder / "config.json")["auto_map"]
    change(folder / "config.json", auto_map={**references, "AutoConfig": "other.Config"})
    checks = {check.name: check for check in verify(str(folder))}
    assert "unknown: other.py" in checks["code files"].detail
    assert checks["config.json"].verdict == FAILED and checks["loading"].verdict == SKIPPED
    assert not (tmp_path / "ran").exists()


def test_weights_that_the_built_model_does_not_have_fail(folder):
    edit_tensor(folder, NAME, lambda tensor: None)
    checks = {check.name: check for check in verify(str(folder))}
    assert checks["loading"].verdict == FAILED and f"missing: {NAME}" in checks["loading"].detail


def test_line_ends_of_a_windows_checkout_are_the_same_code(folder, without_loading):
    for path in folder.glob("*.py"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert {check.name: check.verdict for check in verify(str(folder))}["code files"] == PASSED


def test_the_command_has_a_table_and_an_exit_status(folder, without_loading, tmp_path):
    result = CliRunner().invoke(app, ["verify", str(folder)])
    assert result.exit_code == 0
    assert "passed  tensors " in result.output and "11 of 11 checks passed." in result.output
    (folder / "LICENSE").unlink()
    (folder / "config.json").unlink()
    result = CliRunner().invoke(app, ["verify", str(folder)])
    assert result.exit_code == 1
    assert "FAILED  config.json " in result.output and "skipped tensors" in result.output
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "nowhere")])
    assert result.exit_code == 2 and "there is no folder" in result.output
