"""The script that runs BenchX on real data names every encoder of BenchX, and goes through all steps."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from medvlp.zoo.release import release_names

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchx.sh"
BENCHX = {
    *("convirt", "gloria", "medclip_r50", "medclip_vit", "medklip", "mflag", "mgca_r50", "mgca_vit", "mrm"),
    *("ptunifier", "refers"),
}


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """A folder with a `medvlp` that writes down its arguments; its `run` fails as one with a failed cell does."""
    (tmp_path / "bin").mkdir()
    file = tmp_path / "bin" / "medvlp"
    file.write_text(
        f'#!/bin/bash\nprintf "%s\\t" "$@" >> {tmp_path}/calls; echo >> {tmp_path}/calls\n[ "$2" != run ]\n'
    )
    file.chmod(0o755)
    return file.parent


def run(tmp_path: Path, bin_folder: Path, *words: str, **variables: str) -> tuple[int, str, list[list[str]]]:
    given = {"BIN": str(bin_folder), "DATA": "raw", "CHECKPOINTS": str(tmp_path / "released"), **variables}
    done = subprocess.run(
        ["bash", SCRIPT, *words], env=os.environ | given, cwd=SCRIPT.parents[1], capture_output=True, text=True
    )
    calls = tmp_path / "calls"
    return done.returncode, done.stderr, [x.rstrip("\t").split("\t") for x in calls.read_text().splitlines()]


def test_every_checkpoint_that_is_there_is_an_encoder(tmp_path: Path, bin_folder: Path) -> None:
    status, shown, _ = run(tmp_path, bin_folder, PLAN_ONLY="1")
    assert status == 0
    missing = [line.split("/")[-1].split(":") for line in shown.splitlines() if line.startswith("no ")]
    assert {name.split(" ")[1] for _, name in missing} == BENCHX | {"timm"}
    assert set(release_names()) >= BENCHX
    (tmp_path / "released").mkdir()
    for file, _ in missing:
        (tmp_path / "released" / file).touch()
    (tmp_path / "calls").unlink()
    status, shown, calls = run(tmp_path, bin_folder, "--seed", "42", SUITE="benchx_fixed", STORES=str(tmp_path / "s"))
    assert (status, shown) == (1, ""), "a failed cell shows in the exit status, and the report is written all the same"
    assert [call[:2] for call in calls] == [
        ["data", "prepare"], ["bench", "plan"], ["bench", "run"], ["bench", "add-results"], ["bench", "report"],
    ]  # fmt: skip
    named = [calls[2][i + 1] for i, word in enumerate(calls[2]) if word == "--encoder"]
    assert {spec.partition(":")[0] for spec in named} == BENCHX | {"timm"}
    assert len(named) == len(BENCHX) + 3
    assert sum("view=native&tokenizer=" in spec for spec in named) == 2
    assert calls[2][2] == "benchmarks/suites/benchx_fixed.yaml"
    assert calls[2][-2:] == ["--seed", "42"]


def test_the_data_must_be_named() -> None:
    done = subprocess.run(["bash", SCRIPT], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.returncode != 0
    assert "DATA" in done.stderr
