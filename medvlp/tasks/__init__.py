"""Kinds of benchmark tasks: encoder in, predictions out, one module per kind (`TaskConfig.type`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medvlp.registry import Registry

if TYPE_CHECKING:
    from medvlp.tasks.base import Task

TASKS: Registry[Task] = Registry("task type", "medvlp.tasks", "medvlp.tasks.base:Task", "medvlp.tasks")

__all__ = ["TASKS"]
