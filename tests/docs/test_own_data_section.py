"""A newcomer follows the README's section "Your own data", and nothing else."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
from command_line import called

README = Path(__file__).parents[2] / "README.md"
SMALLER = {
    "phantom": ["--size", "32", "--image-size", "64", "--workers", "1"],
    "data prepare": ["image.size=64", "num_workers=1"],
    "finetune": ["train.epochs=1", "encoder=random:test_vit@64", "bootstrap_resamples=50", "device=cpu"],
}


def section_commands() -> list[str]:
    text = README.read_text(encoding="utf-8")
    section = text[text.index("## Your own data") :].split("\n## ", 1)[0]
    blocks = re.findall(r"```\n(.*?)```", section, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def check(folder: Path, images: int) -> None:
    """Check what the section promises."""
    result = json.loads((folder / "runs/ours/result.json").read_text())
    assert (folder / "runs/ours/report.html").stat().st_size > 20_000
    assert (folder / "audit.html").is_file()
    found = pd.read_csv(folder / "predictions.csv")
    assert len(found) == images
    for one in result["decisions"]:
        assert found[f"probability:{one['label']}"].between(0, 1).all()
    written = (folder / "predictions.csv").read_text() + (folder / "runs/ours/report.html").read_text()
    assert "Phantom^" not in written


def test_the_section_runs_on_a_small_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import tracking_store
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDVLP_SALT", str(tmp_path / "private" / "salt"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracking_store.copy_to(tmp_path / "runs")
    lines = section_commands()
    assert [shlex.split(line)[1] for line in lines] == [
        *("phantom", "phantom", "data", "data", "finetune", "predict", "ui"),
    ]
    for line in lines[:-1]:
        line = line.replace("--studies 240", "--studies 48").replace("--studies 12", "--studies 4")
        arguments = shlex.split(line)[1:]
        for verb, extra in SMALLER.items():
            if " ".join(arguments).startswith(verb):
                arguments = [one for one in arguments if not one.startswith("encoder=")] + extra
        status, shown = called(monkeypatch, capsys, *arguments)
        assert status == 0, f"{line}\n{shown}"
    check(tmp_path, len(list((tmp_path / "NEW").rglob("IM*"))))
    database = re.search(r"sqlite:///(\S+)", lines[-1])
    assert database is not None
    client = MlflowClient(f"sqlite:///{tmp_path / database[1]}")
    (run,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "ours"


@pytest.mark.slow
def test_the_section_runs_as_it_stands_within_five_minutes(tmp_path: Path) -> None:
    programs = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "MEDVLP_SALT": str(tmp_path / "p" / "salt"),
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    work = tmp_path / "work"
    work.mkdir()
    *commands, show = section_commands()
    began = time.perf_counter()
    script = "set -e\n" + "\n".join(commands)
    done = subprocess.run(["bash", "-c", script], cwd=work, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    assert done.returncode == 0, done.stdout + done.stderr
    assert seconds <= 300
    check(work, len(list((work / "NEW").rglob("IM*"))))
    result = json.loads((work / "runs/ours/result.json").read_text())
    macro = next(row for row in result["scores"] if (row["metric"], row["label"]) == ("auroc", "macro"))
    assert macro["value"] > 0.8, "something was learnt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([*shlex.split(show), "--port", str(port)], cwd=work, env=environment) as server:
        try:
            assert _runs(port) == ["ours"]
        finally:
            server.terminate()


def _runs(port: int) -> list[str]:
    """Return the names of the runs that the page of MLflow lists."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/search",
        data=json.dumps({"experiment_ids": ["1"]}).encode(),
        headers={"Content-Type": "application/json"},
    )
    for _ in range(120):
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return [run["info"]["run_name"] for run in json.load(answer).get("runs", [])]
        except OSError:
            time.sleep(0.5)
    raise AssertionError("the server did not answer")
