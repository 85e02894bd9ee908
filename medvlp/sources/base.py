"""What a data set adapter is: it reads the raw layout and yields studies; it never opens an image.

Guarantee: `studies()` yields the same records in the same order on every machine. What cannot become a study is
recorded as a `Problem` with its reason and next step; nothing is dropped silently.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from medvlp.errors import UserError
from medvlp.sources.cards import Card, load_card
from medvlp.types import Study


@dataclass(frozen=True, slots=True)
class Problem:
    """Why one row or file of the raw data set is not (or not wholly) in the result.

    Args:
        path: File relative to the data set's root, with the row or line where that helps.
        reason: What is wrong, with the value found.
        fix: The next step.
        study_id: The study concerned, where known.
    """

    path: str
    reason: str
    fix: str
    study_id: str | None = None


class Source(ABC):
    """A raw data set on disk.

    A subclass lives in the module of its name (`medvlp/sources/<name>.py`, or an entry point) and has a card of the
    same name. Studies get `split=None` where the data set has no split; a validation split that the data set lacks is
    set aside later, by `medvlp.store.prepare`.

    Args:
        root: Folder or archive of the raw data set.
        options: Values for options that the card declares; the others have their defaults.

    Raises:
        UserError: `root` does not exist, the card is missing or wrong, or an option is.
    """

    name: ClassVar[str]
    """Name of the data set: that of the module, unless the class sets it."""

    def __init_subclass__(cls, **arguments: object) -> None:
        super().__init_subclass__(**arguments)
        if "name" not in cls.__dict__:
            cls.name = cls.__module__.rsplit(".", 1)[-1]

    def __init__(self, root: Path, options: Mapping[str, Any] | None = None) -> None:
        self.root = Path(root)
        if not self.root.exists():
            raise UserError(
                f"The root of {self.name} does not exist.",
                self.root,
                "Check the path: it must be the folder or the archive of the raw data set.",
            )
        self.card: Card = load_card(self.name)
        self.options = self.card.resolve_options(options or {})
        self.problems: list[Problem] = []
        self.counts: Counter[str] = Counter()
        """Facts worth recording (values read as unknown, boxes, masks, ...), in the store's record by `summary`."""
        self._edition: dict[str, str] = {}

    @property
    def kind(self) -> Literal["image", "volume", "video", "none"]:
        """What a store keeps of it; read after `studies()`, so that a mixed data set can tell what was found."""
        return self.card.kind

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Label names in their order. Read after `studies()`: a data set of the user's own has those of its table."""
        return self.card.label_columns

    @abstractmethod
    def studies(self) -> Iterator[Study]:
        """Yield every usable study in a deterministic order; fill `problems` with the rest.

        Raises:
            UserError: The layout as a whole is unusable (a missing file or column, an empty split, a leak).
        """

    def summary(self) -> dict[str, object]:
        """Return facts about the raw data set for the store's record, e.g. counts found against counts declared.

        Called after `studies()` has been read, perhaps only in part. Values are plain JSON types; no absolute path.
        """
        return {**self._edition, **dict(sorted(self.counts.items()))}

    def problem(self, path: str, reason: str, fix: str, study_id: str | None = None) -> None:
        """Record why a row or file is left out."""
        self.problems.append(Problem(path, reason, fix, study_id))

    def check_counts(self, found: Mapping[str, int], size: str) -> None:
        """Compare what was found with the counts of the card, and record the edition.

        Where `found[size]` is the declared number this is the full edition, and every other count must agree; any
        other number is a subset, and recorded as one.

        Args:
            found: Counts under the names of `Card.counts`; those that the card does not declare are not compared.
            size: The count that tells a full edition.

        Raises:
            UserError: A full edition has other counts than the card; each is given with both numbers.
        """
        declared = self.card.counts
        if found[size] != declared.get(size):
            whole = f" of {declared[size]:,}" if size in declared else ""
            self._edition = {"edition": f"subset: {found[size]:,}{whole}"}
            return
        wrong = [
            f"{name}: {found[name]:,} found, {declared[name]:,} declared"
            for name in found
            if name in declared and found[name] != declared[name]
        ]
        if wrong:
            raise UserError(
                "The full edition has other counts than its card:\n    " + "\n    ".join(wrong),
                self.root,
                "Download the tables and lists again.",
            )
        self._edition = {"edition": f"full: {found[size]:,}"}
