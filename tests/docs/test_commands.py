"""The commands in README and docs are commands that medvlp takes, and those of the first page run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
SMALLER = {
    "phantom": ["--size", "48"],
    "pretrain": [
        "train.steps=2",
        "train.batch_size=8",
        "train.optimizer.warmup_steps=1",
        "method.image.input.size=32",
    ],
    "bench run": ["--protocol", "linear_probe", "--fraction", "1.0"],
}


def commands(page: Path) -> list[str]:
    """Return the medvlp commands of a page: lines of code blocks, and code in running text that has arguments."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    inline = [code for code in re.findall(r"`([^`\n]+)`", text) if code.count(" ") >= 3]
    return [line for line in lines + inline if line.startswith("medvlp ") and "..." not in line]


ALL = [(page.relative_to(REPOSITORY).as_posix(), line) for page in PAGES for line in commands(page)]


@pytest.mark.parametrize(("page", "line"), ALL, ids=[f"{page}-{i}" for i, (page, _) in enumerate(ALL)])
def test_a_documented_command_is_accepted(page: str, line: str) -> None:
    import typer

    from medvlp.cli import app

    context, command, arguments = None, typer.main.get_command(app), shlex.split(line)[1:]
    while hasattr(command, "get_command"):
        context = command.make_context(command.name, arguments, parent=context, resilient_parsing=True)
        name = arguments.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"{page}: {line}"
        command = found
    command.make_context(command.name, arguments, parent=context)


def test_the_first_run_runs(tmp_path: Path) -> None:
    lines = commands(REPOSITORY / "docs/getting-started/first-run.md")
    assert len(lines) == 7
    for line in lines:
        arguments = shlex.split(line)[1:]
        for verb, extra in SMALLER.items():
            if " ".join(arguments).startswith(verb):
                arguments += extra
        result = subprocess.run(
            [sys.executable, "-m", "medvlp", *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
    assert (tmp_path / "report.html").stat().st_size > 100_000
    assert (tmp_path / "runs" / "mlflow.db").is_file()
