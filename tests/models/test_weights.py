"""Weight files: foreign objects are never made, foreign code never runs, and what is wrong is said."""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medvlp.errors import UserError
from medvlp.models.weights import check_keys, read_state

STATE = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.float16)}


class Settings(dict):
    """As the attribute dictionary of a training framework."""


class Node:
    """As a node of a configuration framework."""

    def __init__(self) -> None:
        self.content = {"lr": 1e-3}


class Runs:
    """Asks to run a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


class Evaluates:
    """Asks to evaluate an expression when it is unpickled."""

    def __reduce__(self) -> Any:
        return eval, ("open('ran', 'w')",)


@pytest.fixture
def framework(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module that is there when the file is written and gone when it is read."""
    module = types.ModuleType("foreign_framework")
    for kind, name in ((Settings, "AttributeDict"), (Node, "Node")):
        made = type(name, (kind,), {"__module__": module.__name__})
        setattr(module, name, made)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def save(path: Path, beside: Any) -> Path:
    file = path / "x.ckpt"
    torch.save({"hyper_parameters": beside, "state_dict": STATE, "epoch": 2}, file)
    return file


def test_objects_of_a_missing_framework_beside_the_tensors_do_not_matter(tmp_path, framework, monkeypatch):
    settings = framework.AttributeDict(lr=1, node=framework.Node(), path=pathlib.Path("/x"), rate=np.float64(0.5))
    objects = [settings, argparse.Namespace(lr=1), collections.defaultdict(dict, a=1), np.zeros(3)]
    for beside in objects:
        file = save(tmp_path, beside)
        with monkeypatch.context() as gone:
            gone.delitem(sys.modules, framework.__name__)
            read = read_state(file)
        assert read.keys() == STATE.keys()
        assert all(torch.equal(read[name], STATE[name]) for name in STATE)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(save(tmp_path, settings), weights_only=True)  # the allowance has ended


@pytest.mark.parametrize("beside", [Runs(), Evaluates()])
def test_nothing_runs(tmp_path, monkeypatch, beside):
    monkeypatch.chdir(tmp_path)
    file = save(tmp_path, beside)
    if isinstance(beside, Runs):
        with pytest.raises(UserError, match="asks to run code") as error:
            read_state(file)
        assert "weights_only=False" not in str(error.value)
    else:
        assert read_state(file).keys() == STATE.keys()
    assert not (tmp_path / "ran").exists()


def test_objects_that_cannot_be_passed_over_are_named(tmp_path, framework):
    made = type("Items", (list,), {"__module__": framework.__name__})
    framework.Items = made
    with pytest.raises(UserError, match="objects that are not made here") as error:
        read_state(save(tmp_path, made([1, 2])))
    assert "safetensors" in error.value.fix


def test_an_object_among_the_tensors_is_named(tmp_path):
    file = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(2), "settings": argparse.Namespace(lr=1), "n": 3}, file)
    with pytest.raises(UserError, match=r"more than tensors by name \(2\): n, settings"):
        read_state(file)
    torch.save({0: torch.zeros(2), "b": torch.zeros(2)}, file)
    with pytest.raises(UserError, match=r"more than tensors by name \(1\): 0\."):
        read_state(file)
    torch.save([torch.zeros(2)], file)
    with pytest.raises(UserError, match="no mapping"):
        read_state(file)


@pytest.mark.parametrize("content", [b"", b"<html>too many downloads</html>", b"PK\x03\x04broken", b"\x80\x02broken"])
def test_a_file_that_is_no_checkpoint_is_said_to_be_none(tmp_path, content):
    file = tmp_path / "x.pt"
    file.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read") as error:
        read_state(file)
    assert "weights_only=False" not in str(error.value)


def test_the_old_format_is_read(tmp_path):
    file = tmp_path / "x.pt"
    torch.save({"model": STATE}, file, _use_new_zipfile_serialization=False)
    assert read_state(file).keys() == STATE.keys()


def test_weights_that_are_no_plain_numbers_do_not_fit():
    own = {"a": torch.zeros(2), "n": torch.zeros((), dtype=torch.int64)}
    check_keys(own, {"a": torch.zeros(2).half(), "n": own["n"]}, Path("x"))
    for odd in (torch.ones(2).to(torch.int8), torch.ones(2) > 0, torch.ones(2).to(torch.complex64)):
        with pytest.raises(UserError, match=r"no plain floating-point numbers \(1\): a"):
            check_keys(own, {"a": odd, "n": own["n"]}, Path("x"))
