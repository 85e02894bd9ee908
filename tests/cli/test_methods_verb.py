"""`medvlp methods`: the table of all, and what of one can be changed; without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from command_line import called

from medvlp.config.methods import METHODS


def test_every_method_has_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status, shown = called(monkeypatch, capsys, "methods")
    assert status == 0
    assert all(f" {name} " in shown for name in METHODS.names())
    assert "triplets" in shown
    assert "stand-in" in shown
    assert "devide: " in shown, "a stand-in says what is not the paper's"


def test_one_method_shows_what_can_be_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, shown = called(monkeypatch, capsys, "methods", "medslip")
    assert status == 0
    for text in ("method.objectives.icl.weight", "method.options.legacy_", "arXiv 2403.10635", "configs/pretrain/"):
        assert text in shown
    assert called(monkeypatch, capsys, "methods", "medslp")[0] == 1


def test_no_method_and_no_torch_is_imported() -> None:
    code = (
        "import sys; sys.argv = ['medvlp', 'methods']\n"
        "import medvlp.cli\n"
        "try: medvlp.cli.main()\n"
        "except SystemExit: pass\n"
        "print({'torch', 'numpy', 'medvlp.methods.base'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr
