"""Reports of the Indiana University collection as Open-i XML, from the archive or a folder, for all who read them.

Guarantee: every XML file becomes a report or a recorded problem; nothing is unpacked to disk, no entity or DTD in a
file is expanded, and reports come in the order of their numbers, from an archive and from a folder alike.
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
from medvlp.sources._report import join_sections
from medvlp.sources.base import Source

SECTIONS = ("INDICATION", "COMPARISON", "FINDINGS", "IMPRESSION")
_COPY_AGAIN = "Copy the file again from the original archive."


class _Refused(ValueError):
    """The XML holds what no report of this collection holds and what is unsafe to read."""


@dataclass(frozen=True, slots=True)
class OpeniReport:
    """One report: id such as CXR10, sections that are not empty, ids of its images, major MeSH terms."""

    study_id: str
    path: str
    sections: dict[str, str]
    images: tuple[str, ...]
    mesh: tuple[str, ...]

    @property
    def text(self) -> str | None:
        """The sections in their usual order, a line each."""
        return join_sections((name, self.sections.get(name, "")) for name in SECTIONS)


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


def parse_report(content: bytes, path: str) -> OpeniReport:
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
        if label not in SECTIONS:
            raise ValueError(f"it has an unknown section '{label}'")
        if text:
            sections[label] = f"{sections[label]}\n{text}" if label in sections else text
    images = tuple(element.get("id", "") for element in root.findall("parentImage"))
    mesh = tuple((element.text or "").strip() for element in root.iter("major"))
    return OpeniReport(study_id, path, sections, images, mesh)


class OpeniSource(Source):
    """A data set that is made of these reports; its card names `archive`, `folder` and `largest_file_bytes`."""

    files_read = 0
    """XML files seen by `reports`, usable or not."""

    def reports(self) -> list[OpeniReport]:
        """Return one report per id, by number; record the others.

        Two files with one id: the first is kept if they say the same, none if they contradict.

        Raises:
            UserError: There is no report, the archive is broken, or the archive that bears the official name has
                another number of reports than the card declares.
        """
        self.files_read = 0
        found: dict[str, list[OpeniReport]] = {}
        for path, content in self._files():
            self.files_read += 1
            try:
                if isinstance(content, ValueError):
                    raise content
                report = parse_report(content, path)
            except ValueError as error:
                self.problem(path, f"The report cannot be read: {error}.", _COPY_AGAIN)
                continue
            found.setdefault(report.study_id, []).append(report)
        self._check_number()
        numbered = sorted(found, key=lambda name: int(name.removeprefix("CXR")))
        chosen = (self._one(name, sorted(found[name], key=lambda report: report.path)) for name in numbered)
        return [report for report in chosen if report is not None]

    def has_reports(self) -> bool:
        """Tell whether there is an archive or a folder of reports; neither is opened."""
        return self._archive() is not None or bool(self._xml_files())

    def _one(self, study_id: str, reports: list[OpeniReport]) -> OpeniReport | None:
        first = reports[0]
        same = all(report.sections == first.sections for report in reports)
        for report in reports[1:] if same else reports:
            what = f"a copy of {first.path}" if same else f"in contradiction to the other file of {study_id}"
            reason = f"The id {study_id} is used twice: {what}."
            self.problem(report.path, reason, "Keep one file for each id.", study_id)
        return first if same else None

    def _check_number(self) -> None:
        declared, archive = self.card.counts["reports"], self._archive()
        if not self.files_read:
            raise UserError(
                f"There are no reports ({', '.join(self.card.layout)}).",
                self.root,
                f"Give {self.card.adapter['archive']} or the folder of its XML files.",
            )
        if archive is not None and archive.name == self.card.adapter["archive"] and self.files_read != declared:
            raise UserError(
                f"The archive holds {self.files_read} reports, the card declares {declared}.",
                archive,
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
            yield from _members(archive, limit)
            return
        for path in self._xml_files():
            name = path.relative_to(self.root).as_posix()
            try:
                size = path.stat().st_size
                fits = size <= limit
                yield name, path.read_bytes() if fits else ValueError(f"it has {size} bytes, more than {limit}")
            except OSError as error:
                yield name, ValueError(f"it cannot be opened ({error.strerror})")


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
