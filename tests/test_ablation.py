"""The ablation's order, table and picture; the trainings are stood in for."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from moss_audio.training import ablation
from moss_audio.training.train_tiny import Settings


@pytest.fixture
def trained(monkeypatch):
    """Which runs were trained, with which encoder; each result follows from its settings."""
    runs = []

    def train(settings: Settings, folder: Path, encoder=None) -> Path:
        folder.mkdir(parents=True)
        if encoder is None or encoder.suffix != ".pt":
            (folder / "encoder.pt").touch()
        runs.append((folder.name, encoder and encoder.as_posix()))
        (folder / "settings.json").write_text(json.dumps([settings.taps, settings.time_markers, settings.seed]))
        return folder

    def measure(checkpoint: Path, data: Path, limit) -> dict:
        taps, markers, seed = json.loads((checkpoint / "settings.json").read_text())
        worse = 2.0 ** ((taps == 0) + 2 * (not markers)) + 0.5 * seed
        tasks: dict = {}
        for task, figure, *_ in ablation.FIGURES:
            tasks.setdefault(task, {})[figure] = worse / 100 if figure != "aas_ms" else 10 * worse
        return {"tasks": tasks}

    monkeypatch.setattr(ablation, "train", train)
    monkeypatch.setattr(ablation, "read_samples", lambda path, limit: [SimpleNamespace(task="when")])
    monkeypatch.setattr(ablation, "measure", measure)
    monkeypatch.setattr(ablation, "save", lambda report, path: path.write_text(json.dumps(report)))
    return runs


def test_the_table(trained, tmp_path):
    ablation.main([str(tmp_path), "--data", "test.jsonl", "--seeds", "0", "1"])
    shared = [(tmp_path / f"full-{seed}" / "encoder.pt").as_posix() for seed in (0, 1)]
    assert trained == [
        ("full-0", None),
        ("without-DeepStack-0", shared[0]),
        ("without-time-markers-0", shared[0]),
        ("full-1", None),
        ("without-DeepStack-1", shared[1]),
        ("without-time-markers-1", shared[1]),
    ]
    lines = (tmp_path / "ablation.md").read_text().splitlines()
    assert lines[2].startswith("| full | 1.25% (1.00% to 1.50%) | 12 ms (10 ms to 15 ms) |")
    assert lines[3].startswith("| without DeepStack | 2.25% (2.00% to 2.50%) |")
    assert lines[4].startswith("| without time markers | 4.25% (4.00% to 4.50%) |")
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
    assert lines[0] == "| model | WER | matched | event F1 | counts right | order right | choices right |"
    assert lines[2] == "| full | 1.00% | 1.0% | 0.010 | 1.0% | 1.0% | 1.0% |"
    assert lines[4] == "| without time markers | 4.00% | 4.0% | 0.040 |  | 4.0% | 4.0% |"
    with pytest.raises(SystemExit, match="other options"):
        ablation.main([*arguments, "--steps", "3000"])
    monkeypatch.undo()
    with pytest.raises(SystemExit, match="no.jsonl"):
        ablation.main([str(tmp_path / "new"), "--data", "no.jsonl"])
    monkeypatch.setattr(ablation, "read_samples", lambda path, limit: [SimpleNamespace(task="presence")])
    with pytest.raises(SystemExit, match="none of the tasks choice, .*, when: there is nothing to compare"):
        ablation.main([str(tmp_path / "new"), "--data", "test.jsonl"])
    assert not (tmp_path / "new").exists()


def test_an_interrupted_one_goes_on_and_shows_what_is_there(trained, tmp_path, monkeypatch):
    measure = ablation.measure
    monkeypatch.setattr(ablation, "measure", lambda *a: measure(*a) if len(trained) < 3 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ablation.main([str(tmp_path), "--data", "test.jsonl", "--encoder", "taught.pt"])
    assert len((tmp_path / "ablation.md").read_text().splitlines()) == 4  # two of the three
    trained.clear()
    (tmp_path / "without-time-markers-0" / "settings.json").unlink()
    (tmp_path / "without-time-markers-0").rmdir()
    monkeypatch.setattr(ablation, "measure", measure)
    ablation.main([str(tmp_path), "--data", "test.jsonl", "--encoder", "taught.pt"])
    assert [name for name, _ in trained][:2] == ["without-time-markers-0", "full-1"]
    assert {encoder for _, encoder in trained} == {"taught.pt"}
    assert len((tmp_path / "ablation.md").read_text().splitlines()) == 5


def test_several_commands_share_the_work(trained, tmp_path):
    """Each trains its variants with the ear that is there, and the table has what all of them have measured."""
    arguments = [str(tmp_path), "--data", "test.jsonl", "--encoder", "checkpoint", "--variants"]
    ablation.main([*arguments, "without time markers", "--seeds", "0"])
    ablation.main([*arguments, "full"])
    ablation.main([*arguments, "without DeepStack", "--seeds", "1"])
    assert trained == [
        ("without-time-markers-0", "checkpoint"),
        ("full-0", "checkpoint"),
        ("full-1", "checkpoint"),
        ("without-DeepStack-1", (tmp_path / "full-1" / "encoder.pt").as_posix()),
    ]
    lines = (tmp_path / "ablation.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| full", "| without DeepStack", "| without time markers"]
    assert lines[2].startswith("| full | 1.25% (1.00% to 1.50%) |")
    assert lines[3].startswith("| without DeepStack | 2.50% | 25 ms |")
