"""`medvlp data prepare` by jobs of this machine: the same store, also when it is mended later."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import nih_layout as nih


def medvlp(*words: object) -> None:
    command = [sys.executable, "-m", "medvlp", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stderr


def tree(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_store_by_jobs_and_its_mending(tmp_path: Path) -> None:
    root = nih.small(patients=9, test_patients=3).write(tmp_path / "raw")
    broken = root / "images" / nih.name(4)
    good = broken.read_bytes()
    broken.write_bytes(b"no picture")
    words = ["data", "prepare", "nih_chestxray14", "--root", root, "image.size=16", "shard_images=2"]
    words += ["max_quarantine_share=0.5"]
    jobs = ["cluster.max_jobs=2", "cluster=local", f"cluster.logs={tmp_path / 'logs'}"]
    medvlp(*words, "--out", tmp_path / "store", *jobs)
    medvlp(*words, "--out", tmp_path / "plain", "num_workers=1")
    assert tree(tmp_path / "store") == tree(tmp_path / "plain")
    assert list((tmp_path / "logs").rglob("*_log.err"))
    broken.write_bytes(good)
    medvlp(*words, "--out", tmp_path / "store", *jobs)
    medvlp(*words, "--out", tmp_path / "plain", "num_workers=1")
    medvlp(*words, "--out", tmp_path / "fresh", "num_workers=1")
    assert tree(tmp_path / "store") == tree(tmp_path / "plain") == tree(tmp_path / "fresh")
