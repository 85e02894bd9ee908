"""Sections of a report that a data set holds apart -> one text.

Guarantee: every section that is there stands on its own line under its heading, as `medvlp.text.sections` reads it;
nothing else is added.
"""

from __future__ import annotations

from collections.abc import Iterable


def join_sections(sections: Iterable[tuple[str, str]], absent: Iterable[str] = ()) -> str | None:
    """Return `HEADING: text` lines of the sections (heading, text) that hold text, None where none does.

    Args:
        sections: Headings with their texts.
        absent: Texts that mean that there is none, such as `Not given.`, in any case and with or without the full stop.
    """
    nothing = {"", *(text.rstrip(".").lower() for text in absent)}
    given = [(heading, text.strip()) for heading, text in sections]
    lines = [f"{heading}: {text}" for heading, text in given if text.rstrip(".").lower() not in nothing]
    return "\n".join(lines) or None
