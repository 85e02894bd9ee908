"""The base of every configuration: frozen, no unknown key, hashable as JSON."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Config(BaseModel):
    """A frozen pydantic model that refuses unknown keys and numbers that are not finite, and knows its SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false, which pydantic takes for 1 and 0, where a number is wanted."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        wanted = {annotation, *get_args(annotation)}
        if isinstance(value, bool) and wanted & {int, float} and not wanted & {bool, Any}:
            raise ValueError("must be a number, not true or false")
        return value

    def resolved(self) -> dict[str, Any]:
        """Return the whole configuration as plain JSON types, defaults included."""
        return self.model_dump(mode="json")

    def sha256(self) -> str:
        """Return the hash of the resolved configuration, independent of key order and of how it was written."""
        return json_sha256(self.resolved())


def json_sha256(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
