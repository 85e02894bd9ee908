"""Pre-training: one loop for every method, resumable to the bit."""

from __future__ import annotations

from medvlp.train.loop import pretrain

__all__ = ["pretrain"]
