"""What a data set adapter is: it reads the raw layout and yields studies; it never opens an image.

Guarantee: `studies()` yields the same records in the same order on every machine. What cannot become a study is
recorded as a `Problem` with its reason and next step; nothing is dropped silently.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

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

    Raises:
        UserError: `root` does not exist, or the card is missing or wrong.
    """

    name: ClassVar[str]
    """Name of the data set: that of the module, unless the class sets it."""

    def __init_subclass__(cls, **arguments: object) -> None:
        super().__init_subclass__(**arguments)
        if "name" not in cls.__dict__:
            cls.name = cls.__module__.rsplit(".", 1)[-1]

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        if not self.root.exists():
            raise UserError(
                f"The root of {self.name} does not exist.",
                self.root,
                "Check the path: it must be the folder or the archive of the raw data set.",
            )
        self.card: Card = load_card(self.name)
        self.problems: list[Problem] = []

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
        return {}
