"""Indiana University chest X-ray reports (Open-i XML), without images.

Guarantee: every XML file of the archive or folder becomes a study or a recorded problem; nothing is unpacked to disk,
no entity or DTD in a file is expanded, and studies come in the order of their numbers, from an archive and from a
folder alike.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from medvlp.errors import UserError
from medvlp.sources.base import Problem, Source
from medvlp.types import Study

_SECTIONS = ("INDICATION", "COMPARISON", "FINDINGS", "IMPRESSION")
_COPY_AGAIN = "Copy the file again from the original archive."


class _Refused(ValueError):
    """The XML holds what no report of this collection holds and what is unsafe to read."""


@dataclass(frozen=True, slots=True)
class _Report:
    study_id: str
    path: str
    sections: dict[str, str]
    images: int

    @property
    def text(self) -> str | None:
        return "\n".join(f"{name}: {self.sections[name]}" for name in _SECTIONS if name in self.sections) or None


def parse_xml(content: bytes) -> Element:
    """Parse XML without DTD, entities or external references.

    Raises:
        ValueError: It declares a document type or an entity (an "entity bomb" is made of these), or is not well formed.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise _Refused("it declares a document type or entities")

    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.buffer_text = True
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise ValueError(f"it is no well-formed XML: {error}") from error
    return builder.close()


def parse_report(content: bytes, path: str) -> _Report:
    """Read one report.

    Raises:
        ValueError: It is no Open-i report; the message says why.
    """
    root = parse_xml(content)
    identity = root.find("uId")
    study_id = "" if identity is None else identity.get("id", "")
    if not re.fullmatch(r"CXR\d+", study_id):
        raise ValueError(f"it has no report id such as CXR10 in uId (found '{study_id}')")
    sections: dict[str, str] = {}
    for element in root.iter("AbstractText"):
        label, text = element.get("Label", "").upper(), "".join(element.itertext()).strip()
        if label not in _SECTIONS:
            raise ValueError(f"it has an unknown section '{label}'")
        if text:
            sections[label] = f"{sections[label]}\n{text}" if label in sections else text
    return _Report(study_id, path, sections, len(root.findall("parentImage")))


class IuXrayReports(Source):
    """Reports of the Indiana University collection: `NLMCXR_reports.tgz`, or a folder with its XML files.

    A study has the sections that are not empty as "INDICATION: ...", "COMPARISON: ...", "FINDINGS: ...", "IMPRESSION:
    ...", a line each, no images and no labels (the MeSH terms are no findings in the sense of the labeler). One
    report a patient is assumed.
    """

    def studies(self) -> Iterator[Study]:
        """Yield a study per report, by number.

        A report without findings and impression is a study, but also a problem. Two files with one id: the first is
        kept if they say the same, none if they contradict.

        Raises:
            UserError: There is no report, the archive is broken, or the archive that bears the official name has
                another number of reports than the card declares.
        """
        self.problems = []
        self._counts = dict.fromkeys(("reports", "images", "empty_findings", "empty_impression", "empty_both"), 0)
        reports: dict[str, list[_Report]] = {}
        for path, content in self._files():
            self._counts["reports"] += 1
            try:
                if isinstance(content, ValueError):
                    raise content
                report = parse_report(content, path)
            except ValueError as error:
                self.problems.append(Problem(path, f"The report cannot be read: {error}.", _COPY_AGAIN))
                continue
            reports.setdefault(report.study_id, []).append(report)
        self._check_counts()
        for study_id in sorted(reports, key=lambda name: int(name.removeprefix("CXR"))):
            study = self._study(study_id, sorted(reports[study_id], key=lambda report: report.path))
            if study is not None:
                yield study

    def summary(self) -> dict[str, object]:
        """Return the counts found, those that the card declares, and which of them differ."""
        declared = {name: self.card.counts[name] for name in self._counts}
        differ = sorted(name for name, count in declared.items() if self._counts[name] != count)
        return {"found": dict(self._counts), "declared": declared, "mismatch": differ, "whole": not differ}

    def _study(self, study_id: str, reports: list[_Report]) -> Study | None:
        first = reports[0]
        same = all(report.sections == first.sections for report in reports)
        for report in reports[1:] if same else reports:
            what = f"a copy of {first.path}" if same else f"in contradiction to the other file of {study_id}"
            self.problems.append(
                Problem(
                    report.path, f"The id {study_id} is used twice: {what}.", "Keep one file for each id.", study_id
                )
            )
        if not same:
            return None
        self._counts["images"] += first.images
        self._counts["empty_findings"] += "FINDINGS" not in first.sections
        self._counts["empty_impression"] += "IMPRESSION" not in first.sections
        if not {"FINDINGS", "IMPRESSION"} & set(first.sections):
            self._counts["empty_both"] += 1
            self.problems.append(
                Problem(
                    first.path,
                    "The report has neither findings nor an impression.",
                    "Nothing to do: it is kept without a report body, and text training leaves it out.",
                    study_id,
                )
            )
        return Study(study_id=study_id, patient_id=study_id, report=first.text)

    def _check_counts(self) -> None:
        found, declared = self._counts["reports"], self.card.counts["reports"]
        if not found:
            raise UserError(
                f"There are no reports ({', '.join(self.card.layout)}).",
                self.root,
                "Give NLMCXR_reports.tgz or the folder of its XML files.",
            )
        if found != declared and self._archive() is not None and self._archive().name == self.card.adapter["archive"]:  # type: ignore[union-attr]
            raise UserError(
                f"The archive holds {found} reports, the card declares {declared}.",
                self._archive(),
                "Copy the archive again. A subset goes in a folder or under another name.",
            )

    def _archive(self) -> Path | None:
        if self.root.is_file():
            return self.root
        inside = self.root / self.card.adapter["archive"]
        return inside if inside.is_file() and not self._xml_files() else None

    def _xml_files(self) -> list[Path]:
        for folder in (self.root, self.root / self.card.adapter["folder"]):
            files = sorted(path for path in folder.glob("*.xml") if not path.name.startswith("._"))
            if files:
                return files
        return []

    def _files(self) -> Iterator[tuple[str, bytes | ValueError]]:
        """Yield (path, content) of every XML file; a ValueError stands for content that must not or cannot be read."""
        limit = int(self.card.adapter["largest_file_bytes"])
        archive = self._archive()
        if archive is not None:
            yield from self._members(archive, limit)
            return
        for path in self._xml_files():
            name = path.relative_to(self.root).as_posix()
            try:
                size = path.stat().st_size
                yield (
                    name,
                    path.read_bytes() if size <= limit else ValueError(f"it has {size} bytes, more than {limit}"),
                )
            except OSError as error:
                yield name, ValueError(f"it cannot be opened ({error.strerror})")

    @staticmethod
    def _members(archive: Path, limit: int) -> Iterator[tuple[str, bytes | ValueError]]:
        count = 0
        try:
            with tarfile.open(archive, "r|*") as stream:
                for member in stream:
                    path = PurePosixPath(member.name)
                    if path.suffix.lower() != ".xml" or path.name.startswith("._") or member.isdir():
                        continue
                    count += 1
                    if path.is_absolute() or ".." in path.parts:
                        yield member.name, ValueError("its path leaves the archive")
                    elif not member.isreg():
                        yield member.name, ValueError("it is a link or a device, not a file")
                    elif member.size > limit:
                        yield member.name, ValueError(f"it has {member.size} bytes, more than {limit}")
                    else:
                        content = stream.extractfile(member)
                        yield member.name, b"" if content is None else content.read()
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise UserError(
                f"The archive is broken after {count} reports: {error}",
                archive,
                "Copy the archive again and compare its size.",
            ) from error
