"""The base of every configuration: frozen, no unknown key, hashable as JSON."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Config(BaseModel):
    """A frozen pydantic model that refuses unknown keys and knows its SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def resolved(self) -> dict[str, Any]:
        """Return the whole configuration as plain JSON types, defaults included."""
        return self.model_dump(mode="json")

    def sha256(self) -> str:
        """Return the hash of the resolved configuration, independent of key order and of how it was written."""
        return json_sha256(self.resolved())


def json_sha256(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
