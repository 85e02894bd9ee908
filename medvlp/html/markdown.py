"""The part of Markdown that data cards use, as HTML: headings, paragraphs, lists, tables, code blocks, emphasis, links.

Guarantee: all text is escaped first, so a card can add no markup or script of its own; a link keeps only a web address.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from markupsafe import Markup, escape

_INLINE = (
    (re.compile(r"\*\*(.+?)\*\*"), r"<strong>\1</strong>"),
    (re.compile(r"(?<!\w)[*_](?=\S)(.+?)(?<=\S)[*_](?!\w)"), r"<em>\1</em>"),
    (re.compile(r"\[([^\]]+)\]\((https?://[^\s)]+)\)"), r'<a href="\2" rel="noreferrer">\1</a>'),
)
_ITEM = re.compile(r"^\s*([-*+]|\d+[.)])\s+(.*)$")


def to_html(text: str) -> Markup:
    """Return Markdown text as HTML; a first-level heading becomes a third-level one, and so on down."""
    return Markup("\n".join(_blocks(text.splitlines())))  # noqa: S704 - every piece is escaped in _inline


def _inline(text: str) -> str:
    parts = str(escape(text)).split("`")
    for i in range(0, len(parts), 2):
        for pattern, replacement in _INLINE:
            parts[i] = pattern.sub(replacement, parts[i])
    if len(parts) % 2 == 0:
        return "`".join(parts)
    return "".join(part if i % 2 == 0 else f"<code>{part}</code>" for i, part in enumerate(parts))


def _blocks(lines: list[str]) -> Iterator[str]:
    i = 0
    while i < len(lines):
        line = lines[i]
        heading = re.match(r"^(#{1,6})\s+(.*)$", line)
        if not line.strip():
            i += 1
        elif line.startswith("```"):
            end = next((j for j in range(i + 1, len(lines)) if lines[j].startswith("```")), len(lines))
            yield f"<pre>{escape(chr(10).join(lines[i + 1 : end]))}</pre>"
            i = end + 1
        elif heading:
            level = min(len(heading[1]) + 2, 6)
            yield f"<h{level}>{_inline(heading[2])}</h{level}>"
            i += 1
        elif line.lstrip().startswith("|") and i + 1 < len(lines) and re.match(r"^\s*\|[\s:|-]+$", lines[i + 1]):
            end = next((j for j in range(i, len(lines)) if not lines[j].lstrip().startswith("|")), len(lines))
            yield _table([lines[i], *lines[i + 2 : end]])
            i = end
        elif _ITEM.match(line):
            end = _end(lines, i)
            yield _list(lines[i:end])
            i = end
        else:
            end = i + 1
            while (
                end < len(lines)
                and lines[end].strip()
                and not re.match(r"^(#|```|\s*\|)", lines[end])
                and not _ITEM.match(lines[end])
            ):
                end += 1
            yield f"<p>{_inline(' '.join(part.strip() for part in lines[i:end]))}</p>"
            i = end


def _end(lines: list[str], start: int) -> int:
    """Where a list ends: at an empty line, or a heading."""
    return next((j for j in range(start, len(lines)) if not lines[j].strip() or lines[j].startswith("#")), len(lines))


def _list(lines: list[str]) -> str:
    items: list[str] = []
    for line in lines:
        match = _ITEM.match(line)
        if match:
            items.append(match[2])
        else:
            items[-1] += " " + line.strip()
    tag = "ol" if lines[0].lstrip()[0].isdigit() else "ul"
    return f"<{tag}>{''.join(f'<li>{_inline(item)}</li>' for item in items)}</{tag}>"


def _table(lines: list[str]) -> str:
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))] for line in lines]
    head = "".join(f'<th scope="col">{_inline(cell)}</th>' for cell in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{_inline(cell)}</td>' for cell in row)}</tr>" for row in rows[1:])
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" role="region" tabindex="0" aria-label="Table">{table}</div>'
