"""Reports of MIMIC-CXR: the official zip, the same unpacked, or the table of sections that users make from them.

Guarantee: nothing is unpacked to disk; a report that cannot be read is a recorded problem; a text is kept as it stands,
but for the title line FINAL REPORT.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from pathlib import PurePosixPath

from medvlp.errors import UserError
from medvlp.sources._checks import unique_rows
from medvlp.sources._csv import read_csv
from medvlp.sources._files import table_path
from medvlp.sources._report import join_sections
from medvlp.sources.base import Source

ARCHIVE = "mimic-cxr-reports.zip"
FOLDERS = ("files", "mimic-cxr-reports/files")
SECTIONED = ("mimic_cxr_sectioned.csv", "mimic_cxr_sectioned.csv.gz")
LARGEST_BYTES = 1_000_000
"""Of one report; real ones have a few thousand."""
_TITLE = re.compile(r"^[ \t]*FINAL REPORT[ \t]*\n", re.MULTILINE)


class Reports(ABC):
    """Where the reports come from; `kind` is the value of the option `reports` that asks for it."""

    kind = "none"

    @abstractmethod
    def text(self, subject: str, study: str) -> str | None:
        """Return the report of a study, None where there is none."""


class _NoReports(Reports):
    def text(self, subject: str, study: str) -> str | None:
        return None


class _Files(Reports):
    kind = "full"

    def __init__(self, source: Source) -> None:
        self.source = source

    @abstractmethod
    def _read(self, name: str) -> bytes | None:
        """Return the file `pNN/pNNNNNNNN/sNNNNNNNN.txt`, None where it is missing."""

    def text(self, subject: str, study: str) -> str | None:
        name = f"p{subject[:2]}/p{subject}/s{study}.txt"
        try:
            content = self._read(name)
            return None if content is None else _TITLE.sub("", content.decode("utf-8")).strip() or None
        except (ValueError, OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            reason = f"the report cannot be read ({type(error).__name__})"
            self.source.problem(f"files/{name}", reason, "Download the reports again; the study has none.", study)
            return None


class _Folder(_Files):
    def __init__(self, source: Source, folder: str) -> None:
        super().__init__(source)
        self.folder = source.root / folder

    def _read(self, name: str) -> bytes | None:
        path = self.folder / name
        if not path.is_file():
            return None
        if path.stat().st_size > LARGEST_BYTES:
            raise ValueError("too large")
        return path.read_bytes()


class _Archive(_Files):
    def __init__(self, source: Source) -> None:
        super().__init__(source)
        path = source.root / ARCHIVE
        try:
            self.archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"The archive of reports cannot be opened: {error}", path, "Download it again.") from None
        names = (info for info in self.archive.infolist() if info.filename.endswith(".txt"))
        self.members = {"/".join(PurePosixPath(info.filename).parts[-3:]): info for info in names}

    def _read(self, name: str) -> bytes | None:
        member = self.members.get(name)
        if member is None:
            return None
        if member.file_size > LARGEST_BYTES:
            raise ValueError("too large")
        return self.archive.read(member)


class _Sectioned(Reports):
    kind = "sectioned"

    def __init__(self, source: Source) -> None:
        path = table_path(source, *SECTIONED)
        rows = read_csv(path, ("study", "impression", "findings"), ("last_paragraph", "comparison"))
        self.rows = unique_rows(source, rows, lambda row: row.cells["study"], path.name, "study")

    def text(self, subject: str, study: str) -> str | None:
        row = self.rows.get(f"s{study}")
        if row is None:
            return None
        cells = row.cells
        named = [(name.upper(), cells[name]) for name in ("comparison", "findings", "impression")]
        body = "" if cells["findings"] or cells["impression"] else cells["last_paragraph"]
        return "\n".join(filter(None, [body, join_sections(named)])) or None


def open_reports(source: Source) -> Reports:
    """Return the reports that the option `reports` asks for; `auto` takes the first kind that is there.

    Raises:
        UserError: The kind asked for is not there, or its archive cannot be opened.
    """
    wanted = source.options["reports"]
    if wanted in ("auto", "full"):
        if (source.root / ARCHIVE).is_file():
            return _Archive(source)
        for folder in FOLDERS:
            if next((source.root / folder).glob("p*/p*/s*.txt"), None) is not None:
                return _Folder(source, folder)
        if wanted == "full":
            fix = "Put it there, unpack it there, or choose another options.reports."
            raise UserError(f"There are no reports: {ARCHIVE} is missing.", source.root, fix)
    sectioned = any((source.root / name).is_file() for name in SECTIONED)
    return _Sectioned(source) if wanted == "sectioned" or (wanted == "auto" and sectioned) else _NoReports()
