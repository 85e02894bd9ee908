"""Experts whose findings a report generator reads beside the image: one module per kind (`ExpertConfig.name`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medvlp.registry import Registry

if TYPE_CHECKING:
    from medvlp.tasks._experts.base import Expert

EXPERTS: Registry[Expert] = Registry(
    "expert", "medvlp.tasks._experts", "medvlp.tasks._experts.base:Expert", "medvlp.experts", ("prompts", "words")
)

__all__ = ["EXPERTS"]
