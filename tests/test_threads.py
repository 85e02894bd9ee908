"""Threads: those that wait sleep, small solvers run alone, processes get their share, and what a user set stays."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import threadpoolctl

from medvlp.threads import ALONE_BELOW, NUMBERS, WAITING, children_with, few_threads, wait_asleep


def test_what_a_user_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with children_with(3):
        shown = {name: os.environ[name] for name in (*NUMBERS, *WAITING)}
    assert shown["OMP_WAIT_POLICY"] == "ACTIVE"
    assert (shown["OMP_NUM_THREADS"], shown["MKL_NUM_THREADS"]) == ("1", "3")
    assert "MKL_NUM_THREADS" not in os.environ
    assert "OPENBLAS_THREAD_TIMEOUT" not in os.environ
    wait_asleep()
    assert os.environ["OPENBLAS_THREAD_TIMEOUT"] == "4"


def test_small_solvers_run_by_one_thread() -> None:
    def threads() -> set[int]:
        return {one["num_threads"] for one in threadpoolctl.threadpool_info() if one["user_api"] == "blas"}

    np.ones((8, 8)) @ np.ones((8, 8))
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        with few_threads(ALONE_BELOW - 1):
            assert threads() == {1}
        with few_threads(ALONE_BELOW):
            assert threads() == {2}
        assert threads() == {2}


def test_the_command_line_lets_threads_sleep_before_numpy_is_there() -> None:
    code = """
import sys, os
from medvlp.cli import main
assert "numpy" not in sys.modules
sys.argv = ["medvlp", "--version"]
try:
    main()
except SystemExit:
    print(os.environ["OMP_WAIT_POLICY"])
"""
    clean = {name: value for name, value in os.environ.items() if name not in WAITING}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "PASSIVE"
