"""Hundreds of broken files through every reader: no crash, no hang, no gigabytes; each is right or refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

PROCESSES, SECONDS, MEMORY = 2, 10.0, 2 * 2**30
RIGHT = {"same", "changed where bytes were", "as another reader reads it", "refused"}
UNKNOWABLE = "changed, which cannot be told"


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> list[list[dict]]:
    """Judge all cases in processes of their own; return the lines that each wrote."""
    program = Path(__file__).with_name("mutations.py")
    started = []
    for number in range(PROCESSES):
        folder = tmp_path_factory.mktemp(f"mutations{number}")
        command = [sys.executable, str(program), str(folder), str(number), str(PROCESSES)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
    outputs = [process.communicate(timeout=500)[0] for process in started]
    return [[json.loads(line) for line in output.splitlines()] for output in outputs]


def cases(reports: list[list[dict]]) -> list[dict]:
    return [line for lines in reports for line in lines if "verdict" in line]


def test_no_case_ends_its_process(reports):
    for lines in reports:
        assert lines[-1].get("done"), f"the process ended at {lines[-1]}"


def test_at_least_five_hundred_files_of_every_kind(reports):
    found = cases(reports)
    assert len(found) >= 500
    assert {case["number"] for case in found} == set(range(len(found)))
    kinds = Counter(case["kind"] for case in found)
    assert len(kinds) >= 18
    assert min(kinds.values()) >= 15


def test_each_is_right_or_refused(reports):
    wrong = [case for case in cases(reports) if case["verdict"] not in {*RIGHT, UNKNOWABLE}]
    assert not wrong, wrong


def test_what_cannot_be_told_is_confined_to_lossy_pixels(reports):
    kinds = {case["kind"] for case in cases(reports) if case["verdict"] == UNKNOWABLE}
    assert kinds <= {"jpeg", "jpeg2000", "jpeg_ls", "rle", "avi"}


def test_most_harm_is_noticed(reports):
    """The suite would be worthless if mutations hit nothing: two thirds are refused."""
    counts = Counter(case["verdict"] for case in cases(reports))
    assert counts["refused"] >= 0.6 * counts.total()


def test_none_hangs_or_takes_gigabytes(reports):
    slow = [case for case in cases(reports) if case["seconds"] > SECONDS]
    assert not slow, slow
    assert max(lines[-1]["peak"] for lines in reports) < MEMORY
