"""The header of an ordinary DICOM file, scanned without building a dataset: for series of hundreds of files.

Guarantee: only what has a preamble, a little-endian transfer syntax and the expected value representations is scanned;
of everything else the result is None, and pydicom reads it. The values are those that pydicom gives, as text and
integers. Source: DICOM PS3.5 section 7.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydicom import uid
from pydicom.datadict import dictionary_VR, tag_for_keyword

HEAD_BYTES = 32768
_LONG_VRS = frozenset((b"OB", b"OW", b"UN", b"SQ", b"UT", b"OD", b"OF", b"OL", b"OV", b"UC", b"UR", b"SV", b"UV"))
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXEL_DATA = 0x7FE00010
_TRANSFER_SYNTAX = 0x00020010
_DEEPEST = 16
_TEXT = frozenset(("UI", "CS", "DS", "IS", "DA", "AS", "SH", "LO"))
_EXPLICIT = frozenset(
    {
        uid.ExplicitVRLittleEndian,
        *(s for s in uid.AllTransferSyntaxes if s.is_compressed and s != uid.DeflatedExplicitVRLittleEndian),
    }
)


class _Unusual(Exception):
    """The header is not one that is scanned here."""


@dataclass(frozen=True, slots=True)
class Scan:
    """Values by keyword (absent ones are left out), and the place of the pixel data; length None: encapsulated."""

    values: dict[str, Any]
    transfer_syntax: str
    offset: int
    length: int | None


@dataclass(frozen=True)
class Wanted:
    """Attributes to scan for: tag -> keyword and value representations."""

    tags: Mapping[int, tuple[str, frozenset[bytes]]]

    @classmethod
    def of(cls, keywords: tuple[str, ...]) -> Wanted:
        """Look the keywords up in the dictionary."""
        tags = {}
        for keyword in keywords:
            tag = int(tag_for_keyword(keyword) or 0)
            tags[tag] = keyword, frozenset(part.strip().encode() for part in dictionary_VR(tag).split(" or "))
        return cls(tags)


def scan(head: bytes, wanted: Wanted) -> Scan | None:
    """Scan the first bytes of a file up to its pixel data; None where pydicom must read it."""
    try:
        return _scan(head, wanted)
    except (_Unusual, struct.error, ValueError, IndexError):
        return None


def _scan(head: bytes, wanted: Wanted) -> Scan:
    if head[128:132] != b"DICM":
        raise _Unusual
    syntax, position = _transfer_syntax(head)
    explicit = syntax != uid.ImplicitVRLittleEndian
    if explicit and syntax not in _EXPLICIT:
        raise _Unusual
    values: dict[str, Any] = {}
    before = 0
    while True:
        tag, vr, start, length = _element(head, position, explicit)
        if tag <= before or tag < 0x00080000:
            raise _Unusual
        before = tag
        if tag == _PIXEL_DATA:
            return Scan(values, syntax, start, None if length == _UNDEFINED else length)
        if length == _UNDEFINED:
            if explicit and vr != b"SQ":
                raise _Unusual
            position = _after_sequence(head, start, explicit, 0)
        else:
            position = start + length
        if position > len(head):
            raise _Unusual
        found = wanted.tags.get(tag)
        if found is not None:
            keyword, expected = found
            if explicit and vr not in expected:
                raise _Unusual
            # Where the dictionary leaves the sign open (Pixel Padding Value) the word itself is given.
            value = _value(head[start:position], vr if explicit else max(expected), len(expected))
            if value is not None:
                values[keyword] = value


def _transfer_syntax(head: bytes) -> tuple[str, int]:
    """Walk the file meta group; return the transfer syntax and where the dataset starts."""
    position, syntax = 132, ""
    while head[position : position + 2] == b"\x02\x00":
        tag, _, start, length = _element(head, position, True)
        position = start + length
        if tag == _TRANSFER_SYNTAX:
            syntax = head[start:position].rstrip(b"\0").decode("ascii")
    return syntax, position


def _element(head: bytes, position: int, explicit: bool) -> tuple[int, bytes, int, int]:
    """Return tag, value representation (empty where implicit), start and length of the value of one element."""
    group, element = struct.unpack_from("<HH", head, position)
    tag = group << 16 | element
    if not explicit or group == 0xFFFE:
        return tag, b"", position + 8, struct.unpack_from("<I", head, position + 4)[0]
    vr = head[position + 4 : position + 6]
    if vr in _LONG_VRS:
        return tag, vr, position + 12, struct.unpack_from("<I", head, position + 8)[0]
    if not vr.isalpha() or not vr.isupper():
        raise _Unusual
    return tag, vr, position + 8, struct.unpack_from("<H", head, position + 6)[0]


def _after_sequence(head: bytes, position: int, explicit: bool, depth: int) -> int:
    """Return where a sequence of undefined length ends, after its delimiter."""
    if depth > _DEEPEST:
        raise _Unusual
    while True:
        tag, _, start, length = _element(head, position, explicit)
        if tag == _SEQUENCE_END:
            return start
        if tag != _ITEM:
            raise _Unusual
        position = _after_item(head, start, explicit, depth) if length == _UNDEFINED else start + length


def _after_item(head: bytes, position: int, explicit: bool, depth: int) -> int:
    while True:
        tag, vr, start, length = _element(head, position, explicit)
        if tag == _ITEM_END:
            return start
        if length != _UNDEFINED:
            position = start + length
        elif explicit and vr != b"SQ":
            raise _Unusual
        else:
            position = _after_sequence(head, start, explicit, depth + 1)


def _value(raw: bytes, vr: bytes, choices: int) -> Any:
    """Return text (a list where it has several values), an integer, or True for a sequence; None for an empty value."""
    if not raw:
        return None
    name = vr.decode("ascii")
    if name in ("US", "SS") or choices > 1:
        if len(raw) != 2:
            raise _Unusual
        return struct.unpack("<H" if name == "US" else "<h", raw)[0]
    if name == "SQ":
        return True
    if name not in _TEXT or not raw.isascii():
        raise _Unusual
    parts = [part.strip(" \0") for part in raw.decode("ascii").split("\\")]
    return parts if len(parts) > 1 else parts[0] or None
