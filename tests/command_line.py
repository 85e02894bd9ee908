"""Runs the command line inside the process of a test."""

from __future__ import annotations

import sys

import pytest

import medvlp.cli


def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Run the command line in this process; return its exit status and all it printed."""
    monkeypatch.setattr(sys, "argv", ["medvlp", *map(str, arguments)])
    status: int | str | None = 0
    try:
        medvlp.cli.main()
    except SystemExit as end:
        status = end.code
    shown = capsys.readouterr()
    return int(status or 0), shown.out + shown.err
