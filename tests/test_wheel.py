"""The built wheel, installed elsewhere, holds everything that it needs to run."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder into which the wheel was installed."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [
        *pip,
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        str(folder),
        str(REPOSITORY),
    ]
    subprocess.run(build, check=True, cwd=folder)
    (wheel,) = folder.glob("medvlp-*.whl")
    target = folder / "site"
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True, cwd=folder
    )
    return target


def run(installed: Path, folder: Path, *arguments: str) -> str:
    """Run the installed medvlp in `folder` and return its output."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_it_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    place = run(installed, tmp_path, "-c", "import medvlp; print(medvlp.__file__)")
    assert Path(place.strip()).is_relative_to(installed)
    checked = run(installed, tmp_path, "-m", "medvlp", "config", "check", "configs/pretrain/convirt_phantom.yaml")
    assert "no mistakes" in checked
    run(
        installed,
        tmp_path,
        "-m",
        "medvlp",
        "phantom",
        "write",
        "--studies",
        "4",
        "--out",
        "raw",
        "--size",
        "64",
        "--workers",
        "1",
    )
    run(
        installed,
        tmp_path,
        "-m",
        "medvlp",
        "data",
        "prepare",
        "phantom",
        "--root",
        "raw",
        "--out",
        "store",
        "num_workers=1",
    )
    run(installed, tmp_path, "-m", "medvlp", "data", "show", "store", "--html", "store.html")
    assert (tmp_path / "store.html").stat().st_size > 10_000


def test_it_holds_every_tracked_file_of_the_package(installed: Path) -> None:
    (wheel,) = installed.parent.glob("medvlp-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files", "medvlp"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert set(tracked.stdout.split()) <= names
    for folder, inside in (
        ("configs", "configs"),
        ("data_cards", "data_cards"),
        ("benchmarks/suites", "benchmarks/suites"),
    ):
        for file in (REPOSITORY / folder).rglob("*.*"):
            assert f"medvlp/_shipped/{inside}/{file.relative_to(REPOSITORY / folder).as_posix()}" in names
