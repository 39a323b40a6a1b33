"""Downloads from and uploads to a stand-in for the Hub. No test here talks to the real one."""

import json
import shutil

import pytest

from tests.conversion_helpers import TINY, Hub, read, run_python, shard


# Several commands in one process: importing PyTorch takes longer than all that they do.
CLI = """
import json
from typer.testing import CliRunner
from moss_audio.cli import app
for arguments in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, arguments)
    print(json.dumps({"status": result.exit_code, "output": result.output}))
"""
SOURCE = "OpenMOSS-Team/MOSS-Audio-4B-Thinking"


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def moss_audio(hub, tmp_path):
    """Runs commands against the stand-in; gives the exit status and the output of each."""

    def run(*commands, **environment):
        env = {**hub.environment(tmp_path / "cache"), **environment}
        output = run_python(CLI, json.dumps(commands), cwd=tmp_path, blocked=(), **env)
        results = [json.loads(line) for line in output.splitlines() if line.startswith('{"status"')]
        assert not any("Traceback" in result["output"] for result in results)
        return [(result["status"], result["output"]) for result in results]

    return run


def test_a_repository_is_downloaded_and_converted(hub, moss_audio, tmp_path):
    source = tmp_path / "repository"
    shutil.copytree(TINY, source)
    shard(source, 3)
    (source / "training.bin").write_bytes(b"not wanted")
    hub.downloads[SOURCE] = source
    convert = ["convert", SOURCE, "native", "--revision", "main", "--link"]
    (status, output), (again, _) = moss_audio(convert, convert)
    assert status == again == 0, output
    record = read(tmp_path / "native" / "conversion.json")
    assert record["inputs"] == {"repository": SOURCE, "commit": Hub.COMMIT}
    card = (tmp_path / "native" / "README.md").read_text(encoding="utf-8")
    assert f"base_model: {SOURCE}" in card and "# MOSS-Audio-4B-Thinking" in card
    for number in (1, 2, 3):
        name = f"model-0000{number}-of-00003.safetensors"
        assert (tmp_path / "native" / name).read_bytes() == (source / name).read_bytes()
        assert not (tmp_path / "native" / name).is_symlink()
    assert not any("training.bin" in request for request in hub.requests if "resolve" in request)


def test_what_cannot_be_downloaded(hub, moss_audio, tmp_path):
    other = tmp_path / "repository"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "whisper", "architectures": ["Whisper"]}', encoding="utf-8")
    (other / "model.safetensors").write_bytes(b"x" * 100)
    hub.downloads = {SOURCE: TINY, "someone/whisper": other}
    results = moss_audio(
        ["convert", "nobody/nothing", "native"],
        ["convert", "not an id", "native"],
        ["convert", SOURCE, "native", "--revision", "v9"],
        ["convert", "someone/whisper", "native"],
    )
    messages = [
        "'nobody/nothing' is no folder here, and cannot be downloaded",
        "'not an id' is no folder here, and no id of a repository",
        "at revision 'v9'",
        "`model_type` 'whisper'",
    ]
    for (status, output), message in zip(results, messages, strict=True):
        assert status == 2 and message in output
    assert not any("resolve" in request and "model.safetensors" in request for request in hub.requests)
    assert not (tmp_path / "native").exists()


def test_failed_uploads_leave_the_folder_and_can_be_repeated(hub, moss_audio, tmp_path):
    hub.refused = ["repos/create", "objects/", "/commit/"]
    convert = ["convert", str(TINY), "native", "--push-to-hub", "someone/heard", "--private"]
    weights = tmp_path / "native" / "model.safetensors"
    [(status, output)] = moss_audio(convert)
    assert status == 2 and "could not be uploaded to someone/heard" in output
    before = weights.stat().st_mtime_ns
    *failed, (status, output) = moss_audio(convert, convert, convert)
    for failure in failed:
        assert failure[0] == 2 and "The folder is complete; the same command uploads it again" in failure[1]
    assert not hub.refused
    assert status == 0 and f"{hub.address}/someone/heard" in output
    assert weights.stat().st_mtime_ns == before

    uploaded, names = hub.uploads["someone/heard"], {path.name for path in (tmp_path / "native").iterdir()}
    assert set(uploaded) - {".gitattributes"} == names
    assert all(uploaded[name] == (tmp_path / "native" / name).read_bytes() for name in names)
    assert hub.private["someone/heard"] is True
    assert b'model="someone/heard"' in uploaded["README.md"]


def test_a_card_changed_by_hand_is_uploaded_as_it_is(hub, moss_audio, tmp_path):
    moss_audio(["convert", str(TINY), "native"])
    card = tmp_path / "native" / "README.md"
    card.write_text(card.read_text(encoding="utf-8") + "\nOurs.\n", encoding="utf-8")
    [(status, output)] = moss_audio(["convert", str(TINY), "native", "--push-to-hub", "someone/heard"])
    assert status == 0, output
    assert hub.uploads["someone/heard"]["README.md"].endswith(b"Ours.\n")
    assert hub.private["someone/heard"] is False


def test_uploads_that_cannot_work_are_refused_first(moss_audio, tmp_path):
    convert = ["convert", str(TINY), "native"]
    for (status, output), message in zip(
        moss_audio([*convert, "--push-to-hub", "not an id"], [*convert, "--private"])
        + moss_audio([*convert, "--push-to-hub", "someone/heard"], HF_TOKEN=""),
        ["is no id", "--private is for --push-to-hub", "needs a token"],
        strict=True,
    ):
        assert status == 2 and message in output
    assert not (tmp_path / "native").exists()
