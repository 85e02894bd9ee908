"""Data cards: one Markdown file per data set whose YAML front matter the code reads.

Guarantee: label lists, split sizes and edition counts stand in the card and nowhere else; a card with a mistake is a
`UserError` that lists all its mistakes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationError

from medvlp.config.base import Config
from medvlp.config.resources import shipped
from medvlp.errors import UserError, nearest

_UNITS = ("images", "volumes", "videos", "scans", "studies", "tiles", "captions", "frames")


class SplitSize(Config):
    """Size of an official split of the full data set."""

    images: int | None = Field(None, ge=0)
    studies: int | None = Field(None, ge=0)
    patients: int | None = Field(None, ge=0)


class Option(Config):
    """A choice that the user has when the data set is read, as `options.<name>=value`."""

    default: Any = None
    choices: tuple[Any, ...] = Field((), description="All values allowed; empty: any of the default's type.")
    required: bool = Field(False, description="The user must name it: any default could be wrong without a sign.")
    description: str


class Card(Config):
    """Front matter of a data card. `text` is the whole file, `body` the Markdown below the front matter."""

    name: str
    title: str
    modality: str = Field(description="CR, CT, MR, US, ES (endoscopy), SM (microscopy) or text; as in DICOM.")
    kind: Literal["image", "volume", "video", "none"] = Field("image", description="What a store keeps of it.")
    tasks: tuple[str, ...] = ()
    status: Literal["real files", "miniature"] = Field(
        "miniature",
        description="Whether the adapter has read real files of the data set, or only miniatures in its layout.",
    )
    identifiers: Literal["surrogate", "personal"] = Field(
        "surrogate", description="Ids were made up by the publisher, or can be those of a hospital and are hashed."
    )
    source: str = Field(description="Where the data set comes from.")
    licence: str
    access: str
    layout: tuple[str, ...] = Field(description="Files and folders below the root, one per line.")
    labels: tuple[str, ...] = Field((), description="Label names in the official order.")
    language: str | None = Field(None, description="Of the reports, as in ISO 639-1.")
    structures: tuple[str, ...] = Field(
        (), description="Structures that masks show; where value i + 1 of a file is name i."
    )
    measurements: dict[str, str] = Field(default_factory=dict, description="Numbers given per study -> unit.")
    attributes: tuple[str, ...] = Field((), description="Further facts given per study.")
    options: dict[str, Option] = Field(default_factory=dict, description="Choices when reading the data set.")
    phantom: dict[str, str] = Field(
        default_factory=dict, description="Label -> findings of the phantom that mean it, joined by |; for its layout."
    )
    label_semantics: str = Field("", description="What 1, 0, -1 and NaN mean here.")
    label_aliases: dict[str, str] = Field(default_factory=dict, description="Spelling in some file -> official name.")
    normal_label: str | None = Field(None, description="Label that says that none of the others is present.")
    chexpert: dict[str, str] = Field(
        default_factory=dict, description="Label -> the CheXpert finding that it means, where the names differ."
    )
    splits: dict[str, SplitSize] = Field(default_factory=dict, description="Official splits of the full data set.")
    about_size: str = Field("", description="Size of the full data set in words, where no exact number is known.")
    counts: dict[str, int] = Field(default_factory=dict, description="Further counts of the full data set.")
    split_lists: dict[str, dict[str, int]] = Field(
        default_factory=dict, description="Split lists of a benchmark -> list (train, val, test, train_10) -> lines."
    )
    cut_split_lists: tuple[str, ...] = Field(
        (), description="Those of split_lists that write file names up to their first dot only."
    )
    units: dict[str, str] = Field(default_factory=dict)
    known_faults: tuple[str, ...] = ()
    overlaps: tuple[str, ...] = Field((), description="Data sets that share images or patients with this one.")
    citation: str = ""
    adapter: dict[str, Any] = Field(
        default_factory=dict, description="Further facts that this data set's adapter reads."
    )

    _text: str = PrivateAttr("")

    @property
    def text(self) -> str:
        """The whole card as it stands in the file."""
        return self._text

    @property
    def body(self) -> str:
        """The Markdown part, for people."""
        return self._text.split("\n---\n", 1)[-1].strip()

    @property
    def text_sha256(self) -> str:
        """SHA-256 of the card's text."""
        return hashlib.sha256(self._text.encode()).hexdigest()

    def resolve_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return every declared option with its given or default value.

        Raises:
            UserError: An option is not declared, its value is not allowed, or one that is required is not given; all
                mistakes are listed.
        """
        mistakes = []
        for name, value in given.items():
            option = self.options.get(name)
            if option is None:
                hint = nearest(name, list(self.options))
                mistakes.append(f"options.{name} is no option of {self.name}.{hint}")
            elif option.choices and value not in option.choices:
                mistakes.append(f"options.{name} = {value!r}; allowed: {', '.join(map(str, option.choices))}")
        for name, option in self.options.items():
            if option.required and name not in given:
                mistakes.append(f"options.{name} must be given; one of {', '.join(map(str, option.choices))}")
        if mistakes:
            known = "; ".join(f"{name}: {option.description}" for name, option in self.options.items()) or "none"
            raise UserError("\n  ".join(mistakes), f"options of {self.name}", f"The options are: {known}.")
        return {name: given.get(name, option.default) for name, option in self.options.items()}

    @property
    def coloured(self) -> bool:
        """Whether all images are colour pictures, of endoscopy or microscopy."""
        return self.kind == "image" and self.modality in ("ES", "SM")

    @property
    def size(self) -> str:
        """How large the full data set is, in what a store keeps of it."""
        units = ("reports",) if self.kind == "none" else _UNITS
        found = next((f"{self.counts[unit]:,} {unit}" for unit in units if unit in self.counts), "")
        images = sum(split.images or 0 for split in self.splits.values())
        return found or self.about_size or (f"{images:,} images" if images else "any")

    @property
    def label_columns(self) -> tuple[str, ...]:
        """All label names of a study: the official ones, then `normal_label` where it is not one of them."""
        extra = () if self.normal_label is None or self.normal_label in self.labels else (self.normal_label,)
        return self.labels + extra


def load_card(name: str) -> Card:
    """Return the card of a data set: `data_cards/<name>.md`, or `<name>.md` beside the module of an entry point.

    Raises:
        UserError: There is no such card, or it is wrong.
    """
    path = shipped(f"data_cards/{name}.md")
    if not path.is_file():
        from medvlp.sources import SOURCES

        path = SOURCES.folder(name) / f"{name}.md"
    card = read_card(path)
    if card.name != name:
        raise UserError(
            f"The card says name: {card.name}, expected {name}.", path, "Correct `name` in the front matter."
        )
    return card


def read_card(path: Path) -> Card:
    """Read a card from a Markdown file.

    Raises:
        UserError: The file is missing, has no front matter, or the front matter is wrong (all mistakes are listed).
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError("There is no data card.", path, "Write one, as docs/how-to/add-a-data-set.md says.") from None
    parts = text.split("---\n", 2)
    if len(parts) != 3 or parts[0].strip():
        raise UserError(
            "A data card starts with YAML front matter between two lines '---'.", path, "Add the front matter."
        )
    try:
        fields = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise UserError(f"The front matter is no YAML: {error}", path, "Correct it.") from None
    if not isinstance(fields, dict):
        raise UserError("The front matter must be a mapping.", path, "Write `name: ...` and the other fields.")
    try:
        card = Card.model_validate(fields)
    except ValidationError as error:
        mistakes = [_mistake(detail["loc"], detail["msg"], detail["type"]) for detail in error.errors()]
        raise UserError(
            "The front matter is wrong:\n    " + "\n    ".join(mistakes), path, "Correct these fields."
        ) from None
    card._text = text
    return card


def _mistake(location: tuple[int | str, ...], message: str, kind: str) -> str:
    key = ".".join(str(part) for part in location)
    hint = nearest(str(location[-1]), list(Card.model_fields)) if kind == "extra_forbidden" else ""
    return f"{key}: {message}.{hint}"
