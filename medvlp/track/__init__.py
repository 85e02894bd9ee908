"""Curves and provenance of a run: JSON lines always, MLflow by config."""

from __future__ import annotations

from medvlp.track.base import Tracker, open_tracker
from medvlp.track.provenance import git_hash, run_record

__all__ = ["Tracker", "git_hash", "open_tracker", "run_record"]
