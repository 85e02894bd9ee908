"""A user's mistakes at the command line: each ends in what, where and next step, and replaces nothing."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import called
from PIL import Image

import medvlp.cli
from medvlp.cli._common import say, say_next
from medvlp.config.load import check_config
from medvlp.config.resources import locate, shipped, shipped_root
from medvlp.config.tree import parse_override
from medvlp.errors import UserError


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "medvlp", *arguments], capture_output=True, text=True, timeout=120, cwd=cwd
    )


def tiny_pretraining(folder: Path, store: Path) -> Path:
    method = {
        "name": "convirt",
        "image": {"name": "resnet10t", "input": {"size": 32, "channels": 1, "mean": [0.5], "std": [0.25]}},
        "text": {"hidden": 16, "layers": 1, "heads": 1, "vocab_size": 200, "max_tokens": 16, "pool": "mean"},
        "projection": {"dim": 8},
    }
    train = {"steps": 1, "batch_size": 4}
    config = {"kind": "pretrain", "method": method, "data": {"store": str(store)}, "train": train}
    config |= {"track": {"mlflow": False}}
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A phantom and its store, in a folder whose name has a space and an umlaut."""
    from medvlp.config.prepare import PrepareConfig
    from medvlp.sources.phantom.write import write_phantom
    from medvlp.store.prepare import prepare

    folder = tmp_path_factory.mktemp("my data ä")
    write_phantom(folder / "raw", 8, 0, size=32, num_workers=1)
    image = {"size": 32}
    prepare(
        PrepareConfig.model_validate(
            {"source": "phantom", "root": folder / "raw", "out": folder / "store", "image": image, "num_workers": 1}
        )
    )
    return folder / "raw", folder / "store"


def test_any_refusal_of_the_file_system_is_told_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise IsADirectoryError(21, "Is a directory", "results")

    monkeypatch.setattr(medvlp.cli, "app", refuse)
    with pytest.raises(SystemExit) as end:
        medvlp.cli.main()
    assert end.value.code == 1
    assert "Is a directory" in (shown := capsys.readouterr().err)
    assert "where: results" in shown
    assert "next:" in shown


def test_audit_report_over_a_folder_leaves_no_part_behind(
    phantom: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").mkdir()
    status, shown = called(monkeypatch, capsys, "data", "audit", phantom[1], "--json", tmp_path / "taken")
    assert status == 1
    assert "The report cannot be written" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    status, shown = called(monkeypatch, capsys, "data", "audit", phantom[1], "--json", tmp_path / "audit.json")
    assert status == 0
    assert "Shortcuts could not be looked for" in shown  # 8 studies are too few
    assert json.loads((tmp_path / "audit.json").read_text())["stores"]


def test_printed_commands_can_be_pasted_also_with_spaces_in_paths(
    phantom: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_pretraining(tmp_path, phantom[1])
    status, shown = called(monkeypatch, capsys, "pretrain", config, f"run.dir={tmp_path}/my run")
    assert status == 0
    words = shlex.split(next(line for line in shown.splitlines() if line.startswith("Next: ")).removeprefix("Next: "))
    assert words[:4] == ["medvlp", "bench", "run", "benchmarks/suites/phantom.yaml"]
    assert words[words.index("--store") + 1] == str(phantom[1])
    assert words[words.index("--encoder") + 1] == f"{tmp_path}/my run"
    assert shown.count("Next:") == 1
    weights = tmp_path / "my run" / "model" / "model.safetensors"
    assert weights.stat().st_mode == weights.with_name("config.json").stat().st_mode


def test_only_the_first_process_of_a_training_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    say("x")
    say_next(["medvlp", "doctor"])
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    say_next(["medvlp", "embed", "a b"])
    assert capsys.readouterr().out == "Next: medvlp embed 'a b'\n"


@pytest.mark.parametrize("there", ["file", "model", "config.yaml"])
def test_training_never_replaces_what_is_not_its_own(there: str, phantom: tuple[Path, Path], tmp_path: Path) -> None:
    from medvlp.config.load import load_config
    from medvlp.config.train import PretrainConfig
    from medvlp.train import pretrain

    folder = tmp_path / "run"
    if there == "file":
        folder.write_text("mine")
    elif there == "model":
        (folder / "model").mkdir(parents=True)
    else:
        folder.mkdir()
        (folder / there).write_text("mine: 1")
    before = sorted(tmp_path.rglob("*"))
    file = tiny_pretraining(tmp_path, phantom[1])
    with pytest.raises(UserError, match=r"run\.dir"):
        pretrain(load_config(file, [f"run.dir={folder}"], PretrainConfig))
    assert sorted(tmp_path.rglob("*")) == sorted([*before, file])


def test_a_suite_with_failures_ends_in_status_1_and_its_report_shows_them(
    phantom: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, out, page = tmp_path / "suite.yaml", tmp_path / "out", tmp_path / "report.html"
    entries = [{"task": "phantom_findings", "protocols": ["zero_shot"]}]
    suite.write_text(
        yaml.safe_dump({"kind": "suite", "name": "s", "version": 1, "entries": entries, "baselines": ["majority"]})
    )
    command = ["bench", "run", suite, "--store", phantom[1], "--encoder", "random:nonsense", "--out", out]
    status, shown = called(monkeypatch, capsys, *command, "--no-mlflow")
    assert status == 1
    assert "2 failed" in shown  # the encoder; and too few studies for the task
    status, shown = called(monkeypatch, capsys, "bench", "report", out, "--html", page)
    assert status == 0, shown
    text = page.read_text()
    assert "timm has no backbone named" in text
    assert "both positives and negatives" in text


def test_config_check_finds_a_misspelt_task_in_a_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = shipped("benchmarks/suites/nih_mini.yaml").read_text().replace("nih_pneumonia", "nih_pnumonia")
    (tmp_path / "suite.yaml").write_text(text)
    status, shown = called(monkeypatch, capsys, "config", "check", tmp_path / "suite.yaml")
    assert status == 1
    assert "Did you mean 'benchmarks/tasks/nih_pneumonia.yaml'?" in shown


def test_every_shipped_configuration_checks_and_reloads_to_the_same_hash(tmp_path: Path) -> None:
    folders = ("configs", "benchmarks/suites", "benchmarks/tasks")
    files = [path for folder in folders for path in shipped(folder).rglob("*.yaml")]
    assert len(files) >= 9
    for file in files:
        loaded = check_config(file)
        shown = tmp_path / file.name
        shown.write_text(yaml.safe_dump(loaded.config.resolved(), sort_keys=False))
        again = check_config(shown, kind=None if "kind" in loaded.config.resolved() else type(loaded.config))
        assert again.config.sha256() == loaded.config.sha256(), file


def test_a_misspelt_path_is_answered_with_the_right_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        locate("nih_mini.yaml")
    assert "Did you mean 'benchmarks/suites/nih_mini.yaml'?" in caught.value.what
    with pytest.raises(UserError) as caught:
        locate("no_such_thing.yaml")
    assert ".pre-commit" not in caught.value.fix
    assert "configs/pretrain/medclip_nih_iu.yaml" in caught.value.fix
    assert (shipped_root() / "configs/pretrain/medclip_nih_iu.yaml").is_file()


def test_embed_goes_on_with_mixed_files_from_any_folder(tmp_path: Path) -> None:
    folder = tmp_path / "bilder ü"
    folder.mkdir()
    Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(folder / "good.png")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:60])
    (folder / "note.txt").write_text("no image")
    (folder / "text.dcm").write_text("no image")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(folder)
    result = run("embed", "random:resnet10t@32", "../link", "--out", "x.parquet", cwd=tmp_path / "elsewhere")
    assert result.returncode == 0, result.stderr
    assert "Features of 1 images" in result.stdout
    lines = (tmp_path / "elsewhere" / "x.parquet.quarantine.jsonl").read_text().splitlines()
    assert {Path(json.loads(line)["path"]).name for line in lines} == {"cut.png", "text.dcm"}
    assert all(json.loads(line)["reason"] and json.loads(line)["fix"] for line in lines)


@pytest.mark.parametrize("value", ["my runs #1/a b", "#1", "2026-01-31", "ü 50%"])
def test_a_path_given_on_the_command_line_is_taken_as_it_is(value: str) -> None:
    assert parse_override(f"run.dir={value}") == {"run": {"dir": value}}


def test_an_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medvlp.sources.phantom.write.write_phantom", interrupted)
    status, shown = called(monkeypatch, capsys, "phantom", "write", "--out", "never")
    assert status == 130
    assert "Run the same command again" in shown
