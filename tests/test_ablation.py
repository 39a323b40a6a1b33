"""The ablation's order, table and picture; the trainings are stood in for."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from moss_audio.checkpoints import TINY
from moss_audio.training import ablation
from moss_audio.training.evaluate import read_samples
from moss_audio.training.train_tiny import Settings


@pytest.fixture
def trained(monkeypatch):
    """Which ears were taught and which runs trained, with which encoder; each result follows from its settings."""
    runs = []

    def teach(settings: Settings, folder: Path, encoder, words: Path) -> Path:
        if not (folder / "encoder.pt").exists():
            runs.append((folder.name, encoder and encoder.as_posix()))
            (folder / "encoder.pt").touch()
        return folder / "encoder.pt"

    def train(settings: Settings, folder: Path, encoder: Path, words: Path) -> Path:
        runs.append((folder.name, encoder.as_posix()))
        assert words == folder.parent / "vocabulary.npz"
        (folder / "settings.json").write_text(json.dumps([settings.taps, settings.time_markers, settings.seed]))
        return folder

    def measure(checkpoint: Path, data: Path, limit) -> dict:
        taps, markers, seed = json.loads((checkpoint / "settings.json").read_text())
        worse = 2.0 ** ((taps == 0) + 2 * (not markers)) + 0.5 * seed
        tasks: dict = {}
        for task, figure, *_ in ablation.FIGURES:
            tasks.setdefault(task, {})[figure] = worse / 100 if figure != "aas_ms" else 10 * worse
        return {"tasks": tasks}

    monkeypatch.setattr(ablation, "teach", teach)
    monkeypatch.setattr(ablation, "train", train)
    monkeypatch.setattr(ablation, "read_samples", lambda path, limit: [SimpleNamespace(task="when")])
    monkeypatch.setattr(ablation, "measure", measure)
    monkeypatch.setattr(ablation, "save", lambda report, path: path.write_text(json.dumps(report)))
    return runs


def test_the_table(trained, tmp_path):
    ablation.main([str(tmp_path), "--data", "test.jsonl", "--other-seeds", "0", "1"])
    ears = [(tmp_path / f"ear-{seed}" / "encoder.pt").as_posix() for seed in (0, 1)]
    assert trained == [
        ("ear-0", None),
        ("full-0", ears[0]),
        ("without-DeepStack-0", ears[0]),
        ("without-time-markers-0", ears[0]),
        ("ear-1", None),
        ("full-1", ears[1]),
        ("without-DeepStack-1", ears[1]),
        ("without-time-markers-1", ears[1]),
    ]
    lines = (tmp_path / "ablation.md").read_text().splitlines()
    assert lines[2].startswith("| full | 2 | 1.25% (1.00% to 1.50%) | 12 ms (10 ms to 15 ms) |")
    assert lines[3].startswith("| without DeepStack | 2 | 2.25% (2.00% to 2.50%) |")
    assert lines[4].startswith("| without time markers | 2 | 4.25% (4.00% to 4.50%) |")
    assert (tmp_path / "ablation.png").stat().st_size > 10_000


def test_other_options_and_bad_data_are_refused_and_what_nobody_measured_is_left_out(trained, tmp_path, monkeypatch):
    arguments = [str(tmp_path / "out"), "--data", "test.jsonl", "--seeds", "0"]
    measure = ablation.measure

    def unmatched(*args) -> dict:
        report = measure(*args)
        report["tasks"]["timestamps"]["aas_ms"] = None
        del report["tasks"]["when"]
        if report["tasks"]["count"]["accuracy"] > 0.02:
            del report["tasks"]["count"]
        return report

    monkeypatch.setattr(ablation, "measure", unmatched)
    ablation.main(arguments)
    lines = (tmp_path / "out" / "ablation.md").read_text().splitlines()
    assert lines[0] == "| model | seeds | WER | matched | event F1 | counts right | order right | choices right |"
    assert lines[2] == "| full | 1 | 1.00% | 1.0% | 0.010 | 1.0% | 1.0% | 1.0% |"
    assert lines[4] == "| without time markers | 1 | 4.00% | 4.0% | 0.040 |  | 4.0% | 4.0% |"
    with pytest.raises(SystemExit, match="other options"):
        ablation.main([*arguments, "--steps", "3000"])
    monkeypatch.setattr(ablation, "read_samples", read_samples)
    with pytest.raises(SystemExit, match="no.jsonl"):
        ablation.main([str(tmp_path / "new"), "--data", "no.jsonl"])
    monkeypatch.setattr(ablation, "read_samples", lambda path, limit: [SimpleNamespace(task="presence")])
    with pytest.raises(SystemExit, match="none of the tasks choice, .*, when: there is nothing to compare"):
        ablation.main([str(tmp_path / "new"), "--data", "test.jsonl"])
    assert not (tmp_path / "new").exists()


def test_an_interrupted_one_goes_on_and_shows_what_is_there(trained, tmp_path, monkeypatch):
    arguments = [str(tmp_path), "--data", "test.jsonl", "--encoder", str(tmp_path / "taught.pt")]
    (tmp_path / "taught.pt").touch()
    measure = ablation.measure
    monkeypatch.setattr(ablation, "measure", lambda *a: measure(*a) if len(trained) < 3 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ablation.main(arguments)
    assert len((tmp_path / "ablation.md").read_text().splitlines()) == 4  # two of the three
    trained.clear()
    monkeypatch.setattr(ablation, "measure", measure)
    ablation.main(arguments)
    assert [name for name, _ in trained] == ["without-time-markers-0", "full-1"]
    assert {encoder for _, encoder in trained} == {(tmp_path / "taught.pt").as_posix()}
    assert len((tmp_path / "ablation.md").read_text().splitlines()) == 5


def test_what_was_measured_in_part_is_not_kept(monkeypatch, tmp_path):
    answers = [{"answer": "7."}, {"error": "interrupted before its answer"}]
    monkeypatch.setattr(ablation, "evaluate", lambda *args, **kwargs: {"tasks": {"count": {}}, "answers": answers})
    monkeypatch.setattr(ablation, "read_samples", lambda path, limit: [])
    with pytest.raises(RuntimeError, match="1 of 2 samples were not answered: interrupted"):
        ablation.measure(Path(TINY), tmp_path / "test.jsonl", None)
    answers.pop()
    assert ablation.measure(Path(TINY), tmp_path / "test.jsonl", None)["tasks"] == {"count": {}}


def test_several_commands_share_the_work(trained, tmp_path, capsys):
    """What another command is at is left to it, and the table has what all of them have measured."""
    arguments = [str(tmp_path), "--data", "test.jsonl", "--encoder", "checkpoint"]
    (tmp_path / "full-0").mkdir()
    with FileLock(tmp_path / "full-0" / "lock"):
        ablation.main(arguments)
    assert f"{tmp_path / 'full-0'} is left to the command that is at it." in capsys.readouterr().err
    ears = [(tmp_path / f"ear-{seed}" / "encoder.pt").as_posix() for seed in (0, 1)]
    assert trained == [
        ("ear-0", "checkpoint"),
        ("without-DeepStack-0", ears[0]),
        ("without-time-markers-0", ears[0]),
        ("ear-1", "checkpoint"),
        ("full-1", ears[1]),
    ]
    lines = (tmp_path / "ablation.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| full", "| without DeepStack", "| without time markers"]
    assert lines[2].startswith("| full | 1 | 1.50% | 15 ms |")
    ablation.main(arguments)
    assert trained[-1] == ("full-0", ears[0])
    assert "| full | 2 | 1.25% (1.00% to 1.50%) |" in (tmp_path / "ablation.md").read_text()
