"""`medvlp doctor`: is this environment able to do the work, and if not, what to do."""

from __future__ import annotations

import typer

from medvlp.cli._common import print_table, say


def doctor() -> None:
    """Check Python, libraries, DICOM decoders, devices, memory, disk and shipped files; exit status 1 on a failure."""
    from medvlp.cli._checks import run_checks

    checks = run_checks()
    print_table(
        "medvlp doctor", ("check", "result", "found", "next step"), [(c.name, c.result, c.found, c.fix) for c in checks]
    )
    failed = sum(check.result == "FAIL" for check in checks)
    if failed:
        say(f"{failed} checks failed.")
        raise typer.Exit(1)
    say("Everything needed is here.")
