"""What becomes of identifiers when a data set is prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from medvlp.config.base import Config


class IdentifierConfig(Config):
    """Ids, dates and free text of a store. `auto` protects data sets whose card says that their ids are personal."""

    ids: Literal["auto", "hash", "keep"] = Field(
        "auto", description="hash replaces ids by salted hashes and paths by nothing; keep takes them as they are."
    )
    salt: Path | None = Field(
        None, description="File with the secret salt, outside store and data; made where missing. Default: per user."
    )
    text: Literal["auto", "none", "rules", "presidio"] = Field(
        "auto", description="De-identification of reports: by rules, or by rules and then Presidio."
    )
    model: str | None = Field(None, description="Presidio: installed spaCy package or folder with a model.")

    @model_validator(mode="after")
    def _presidio_has_a_model(self) -> IdentifierConfig:
        if (self.model is not None) != (self.text == "presidio"):
            raise ValueError("model and text=presidio need each other")
        return self
