"""ROCO, ROCOv2 and MedICaT: figures of articles with captions.

Guarantee: a caption belongs to the one image of its id; figures of one article are marked by the attribute `article`,
and articles whose figures are in two splits are counted.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from medvlp.errors import UserError
from medvlp.sources._checks import name_unlisted, unique_rows
from medvlp.sources._csv import Row, read_csv, read_text
from medvlp.sources._files import PICTURES, index_files, require_files
from medvlp.sources.base import Source
from medvlp.types import UNKNOWN_PATIENT, ImageRef, Study

SPLITS = {"train": ("train",), "val": ("validation", "val", "valid"), "test": ("test",)}
KINDS = ("radiology", "non-radiology")
MEDICAT = "s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl"
ARTICLE = re.compile(r"PMC\d+")


class Roco(Source):
    """One of the three data sets below a root folder; see `data_cards/roco.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per figure: by split, kind and id.

        Raises:
            UserError: Captions, a column or all images are missing, or a full edition has other counts than the card.
        """
        self.problems, self.counts = [], Counter()
        self._articles: dict[str, set[str]] = {}
        editions = {"roco": self._roco, "rocov2": self._rocov2, "medicat": self._medicat}
        yield from editions[self.options["edition"]]()
        shared = sum(len(splits) > 1 for splits in self._articles.values())
        self.counts["articles with figures in several splits"] = shared

    def _roco(self) -> Iterator[Study]:
        found = False
        for split, folders in SPLITS.items():
            for kind in KINDS:
                places = (f"{above}{name}/{kind}" for above in ("", "data/") for name in folders)
                base = next((place for place in places if (self.root / place).is_dir()), None)
                if base is None:
                    continue
                images = index_files(self, [f"{base}/images/*"], PICTURES)
                if kind != KINDS[0] and self.options["figures"] == KINDS[0]:
                    self.counts[f"images of {base} left out"] = len(images)
                    continue
                found = True
                require_files(self, images, f"{base}/images/")
                table = f"{base}/captions.txt"
                captions = self._tabbed(table)
                links = self._tabbed(f"{base}/dlinks.txt") if (self.root / base / "dlinks.txt").is_file() else {}
                for name, row in sorted(captions.items()):
                    match = ARTICLE.search(links[name].cells["text"]) if name in links else None
                    attributes = {"kind": kind} | ({"article": match[0]} if match else {})
                    yield from self._figure(name, row, images, split, table, attributes)
                name_unlisted(self, images, captions, table)
        if not found:
            where = "{train,validation,test}/radiology/"
            fix = "Name the folder that holds train, validation and test (or data, with them in it) as root, or set "
            raise UserError(f"There is none of {where}.", self.root, f"{fix}options.edition to the edition that it is.")

    def _tabbed(self, table: str) -> dict[str, Row]:
        """Return id -> row of a file `id<TAB>text` without header."""
        path = self.root / table
        if not path.is_file():
            raise UserError(f"{table} is missing.", path, "Download the captions.")
        rows = []
        for number, line in enumerate(read_text(path).split("\n"), 1):
            name, tab, text = line.partition("\t")
            if tab and name.strip():
                rows.append(Row(number, {"id": name.strip(), "text": text.strip()}))
            elif line.strip():
                self.problem(f"{table}:{number}", "the line is not 'id, tab, text'", "Correct the line.")
        return unique_rows(self, rows, lambda row: row.cells["id"], table)

    def _rocov2(self) -> Iterator[Study]:
        tables = {}
        for split, names in SPLITS.items():
            path = next((p for name in names if (p := self.root / f"{name}_captions.csv").is_file()), None)
            if path is not None:
                rows = unique_rows(self, read_csv(path, ("ID", "Caption")), lambda row: row.cells["ID"], path.name)
                tables[split] = (path.name, rows)
        if not tables:
            raise UserError("train_captions.csv is missing.", self.root, "Check root and options.edition.")
        sizes = {f"rocov2 {split} images": len(rows) for split, (_, rows) in tables.items()}
        self.check_counts({"rocov2 images": sum(sizes.values()), **sizes}, "rocov2 images")
        for split, (table, rows) in tables.items():
            prefix = table.removesuffix("_captions.csv")
            images = index_files(self, [f"{prefix}_images/**/*"], PICTURES)
            require_files(self, images, f"{prefix}_images/")
            concepts = self._concepts(f"{prefix}_concepts.csv")
            for name, row in sorted(rows.items()):
                row = Row(row.line, {"text": row.cells["Caption"]})
                attributes = {"concepts": concepts[name]} if concepts.get(name) else {}
                yield from self._figure(name, row, images, split, table, attributes)
            name_unlisted(self, images, rows, table)

    def _concepts(self, table: str) -> dict[str, str]:
        path = self.root / table
        if not path.is_file():
            return {}
        rows = unique_rows(self, read_csv(path, ("ID", "CUIs")), lambda row: row.cells["ID"], table)
        return {name: row.cells["CUIs"] for name, row in rows.items()}

    def _medicat(self) -> Iterator[Study]:
        base = "release/" if (self.root / "release").is_dir() else ""
        table = f"{base}{MEDICAT}"
        images = index_files(self, [f"{base}figures/*"], PICTURES, by="name")
        require_files(self, images, f"{base}figures/")
        rows = self._json_lines(table)
        self.check_counts({"medicat images": len(rows)}, "medicat images")
        for name, row in sorted(rows.items()):
            if self.options["figures"] == KINDS[0] and row.cells["kind"] != KINDS[0]:
                self.counts["figures left out, they are no radiology"] += 1
                continue
            attributes = {key: row.cells[key] for key in ("article", "kind") if row.cells[key]}
            yield from self._figure(name, row, images, None, table, attributes)
        name_unlisted(self, images, rows, table)

    def _json_lines(self, table: str) -> dict[str, Row]:
        """Return file name -> caption, article and kind; `radiology` is true, false or not given."""
        path = self.root / table
        if not path.is_file():
            raise UserError(f"{Path(table).name} is missing.", path, "Check root and options.edition.")
        kinds = {True: KINDS[0], False: KINDS[1]}
        rows = []
        for number, line in enumerate(read_text(path).split("\n"), 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                article, figure = str(entry["pdf_hash"]), str(entry["fig_uri"])
                text = str(entry.get("s2_caption") or "").strip()
                kind = kinds.get(entry.get("radiology"), "")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                reason = f"the line is no figure: {type(error).__name__} {error}"
                self.problem(f"{table}:{number}", reason, "Download the file again.")
                continue
            cells = {"id": f"{article}_{figure}", "text": text, "article": article, "kind": kind}
            rows.append(Row(number, cells))
        return unique_rows(self, rows, lambda row: row.cells["id"], table)

    def _figure(
        self,
        name: str,
        row: Row,
        images: Mapping[str, str],
        split: str | None,
        table: str,
        attributes: dict[str, str],
    ) -> Iterator[Study]:
        """Yield the study of one caption, or record why there is none."""
        where = f"{table}:{row.line}"
        if not row.cells["text"]:
            self.problem(where, "the caption is empty", "Nothing to do: the figure is left out.", name)
        elif name not in images:
            reason = f"row without image: {name}"
            self.problem(where, reason, "Fetch the image, or accept the gap with max_quarantine_share.", name)
        else:
            if "article" in attributes and split is not None:
                self._articles.setdefault(attributes["article"], set()).add(split)
            yield Study(
                study_id=name,
                patient_id=UNKNOWN_PATIENT,
                images=(ImageRef(name, images[name], self.card.modality),),
                report=row.cells["text"],
                attributes=attributes,
                language=self.card.language,
                split=split,
            )
