"""Options of a method that take one of a few words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medvlp.config.methods import MethodConfig
from medvlp.errors import UserError, nearest

TEXT_UNITS = ("report", "sentence")


def chosen(config: MethodConfig, option: str, allowed: Sequence[str]) -> Any:
    """Return the value of an option.

    Raises:
        UserError: It is none of the allowed words.
    """
    value = config.options[option]
    if value not in allowed:
        raise UserError(
            f"method.options.{option} is '{value}'.{nearest(str(value), list(allowed))}",
            f"method.options.{option}",
            f"Use one of: {', '.join(allowed)}.",
        )
    return value
