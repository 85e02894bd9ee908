"""Fine-tuning on one's own data: the tasks of the benchmark under one verb, with a report and a model to use."""

from __future__ import annotations
