"""Training in real processes: killed at random moments, and on several ranks, against one undisturbed process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_store
import torch
from safetensors.torch import load_file

from medvlp.track.jsonl import read_lines
from medvlp.train.checkpoint import list_checkpoints, read_checkpoint


def nursery(command: str, folder: Path) -> dict:
    store = tiny_store.make_store(folder)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("nursery.py")), command, str(store), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    return result | {"stderr": done.stderr}


def test_a_run_killed_at_random_moments_ends_with_the_same_bits(tmp_path):
    result = nursery("kill", tmp_path)
    *_, last = result["codes"]
    assert result["codes"][0] == last == 0, result["stderr"]
    assert result["codes"].count(-9) >= 1, result
    for part in ("model/model.safetensors", "tokenizer/tokenizer.json", "model/preprocessing.json"):
        assert (tmp_path / "killed" / part).read_bytes() == (tmp_path / "whole" / part).read_bytes(), result["seed"]
    newest = [read_checkpoint(list_checkpoints(tmp_path / run / "checkpoints")[-1]) for run in ("killed", "whole")]
    for part, tensors in newest[0].tensors.items():
        assert tensors.keys() == newest[1].tensors[part].keys()
        assert all(torch.equal(tensor, newest[1].tensors[part][name]) for name, tensor in tensors.items())
    timed = ("time", "train/samples_per_second", "train/data_wait")
    curves = [
        [{k: v for k, v in line.items() if k not in timed} for line in read_lines(tmp_path / run / "metrics.jsonl")]
        for run in ("killed", "whole")
    ]
    assert curves[0] == curves[1]
    assert [line["step"] for line in curves[0]] == list(range(1, 25))


def test_two_ranks_train_as_one_process(tmp_path):
    result = nursery("ranks", tmp_path)
    for name, world in (("one", 1), ("ddp", 2), ("fsdp2", 2)):
        assert result[name] == [0] * world, result["stderr"]
    one = load_file(tmp_path / "one" / "model" / "model.safetensors")
    slow = read_checkpoint(list_checkpoints(tmp_path / "one" / "checkpoints")[-1]).tensors["lookahead"]
    curve = read_lines(tmp_path / "one" / "metrics.jsonl")
    for name in ("ddp", "fsdp2"):
        other = load_file(tmp_path / name / "model" / "model.safetensors")
        assert other.keys() == one.keys()
        for key, tensor in one.items():
            torch.testing.assert_close(other[key], tensor, rtol=1e-4, atol=2e-6)
        lines = read_lines(tmp_path / name / "metrics.jsonl")
        for metric in ("train/loss", "train/grad_norm", "train/soft_label_count", "val/loss"):
            values = [line[metric] for line in lines if metric in line]
            expected = [line[metric] for line in curve if metric in line]
            assert values == pytest.approx(expected, rel=1e-4)
        saved = read_checkpoint(list_checkpoints(tmp_path / name / "checkpoints")[-1])
        assert all(tensor.shape == one[key].shape for key, tensor in saved.tensors["average"].items())
        assert saved.tensors["lookahead"].keys() == slow.keys()
        for key, tensor in saved.tensors["lookahead"].items():
            torch.testing.assert_close(tensor, slow[key], rtol=1e-4, atol=2e-6)
