"""CheXpert: JPEG files of the small or the full edition, with the tables of the training, validation and test images.

Guarantee: labels are found by the names of their columns; files are found by patient, study and view, wherever the
batches of the full edition were unpacked.
"""

from __future__ import annotations

from pathlib import Path

from medvlp.errors import UserError
from medvlp.sources._checks import unique_rows
from medvlp.sources._chexpert import ChexpertSource, Entry, file_key, place_of
from medvlp.sources._csv import Row, read_csv
from medvlp.sources._values import label_value

FACTS = ("Sex", "Age", "Frontal/Lateral", "AP/PA")


class Chexpert(ChexpertSource):
    """The data set below a root folder; see `data_cards/chexpert.md`."""

    suffix = ".jpg"

    def entries(self) -> list[Entry]:
        """Return the usable rows of all tables.

        Raises:
            UserError: A table is missing, there are several of one, or a full edition has other counts than the card.
        """
        names = self.card.adapter["tables"]
        names = names | {"train": [names["train"][self.options["labels"]]]}
        paths = {split: self._table(names[split]) for split in ("train", "valid", "test")}
        for split in ("train", "valid"):
            if paths[split] is None:
                what = f"{names[split][0]}, the table of the {split} images, is missing."
                fix = "Give the folder that holds it, or the one that holds the unpacked batches"
                other = split == "train" and self.options["labels"] != "chexpert"
                raise UserError(what, self.root, f"{fix}, or set options.labels=chexpert." if other else f"{fix}.")
        self.tables = ", ".join(path.name for path in paths.values() if path is not None)
        entries: list[Entry] = []
        found: dict[str, int] = {}
        for split, path in paths.items():
            if path is None:
                continue
            facts = () if split == "test" else FACTS
            rows = read_csv(path, ("Path", *facts, *self.card.labels), FACTS)
            own = self._entries(rows, split, path.name)
            entries += own
            places = [place for row in rows if (place := place_of(row.cells["Path"])) is not None]
            found |= {
                f"{split} images": len({place.key for place in places}),
                f"{split} studies": len({place.study_id for place in places}),
                f"{split} patients": len({place.patient for place in places}),
            }
        self.check_counts(found, "train images")
        self._edition["labels"] = str(self.options["labels"])
        return entries

    def _table(self, names: list[str]) -> Path | None:
        """Return the one table of these names in the root or in a folder CheXpert-v1.0*.

        Raises:
            UserError: There are several.
        """
        places = [self.root, *sorted(self.root.glob("CheXpert-v1.0*"))]
        found = [place / name for place in places for name in names if (place / name).is_file()]
        if len(found) > 1:
            listed = ", ".join(path.relative_to(self.root).as_posix() for path in found)
            fix = "Give the folder of one edition, with one table of each kind."
            raise UserError(f"There are {len(found)} tables of the same images: {listed}.", self.root, fix)
        return found[0] if found else None

    def _entries(self, rows: list[Row], split: str, table: str) -> list[Entry]:
        entries = []
        for row in unique_rows(self, rows, lambda row: file_key(row.cells["Path"]), table).values():
            where, path = f"{table}:{row.line}", row.cells["Path"]
            place = self.place(path, where)
            if place is None:
                continue
            if f"/{split}/" not in f"/{path}":
                self.problem(
                    where, f"'{path}' is not in {split}/", f"Name it in the table of its folder, not in {table}."
                )
                continue
            try:
                labels = {label: label_value(row.cells[label]) for label in self.card.labels}
            except ValueError as error:
                self.problem(where, str(error), "Correct the row.", place.study_id)
                continue
            side, position = row.cells["Frontal/Lateral"], row.cells["AP/PA"]
            cells = {"side": side, "position": position, "age": row.cells["Age"], "sex": row.cells["Sex"]}
            entries.append(Entry(place, where, split, cells, labels))
        return entries
