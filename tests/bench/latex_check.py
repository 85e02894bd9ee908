"""A strict reader of LaTeX tables, where no LaTeX is installed: braces, environments, cells of each row, commands."""

from __future__ import annotations

import re

KNOWN = {
    *("begin", "end", "centering", "caption", "label", "toprule", "midrule", "bottomrule", "cmidrule", "multicolumn"),
    *("textbf", "scriptsize", "footnotesize", "par", "smallskip", "resizebox", "textwidth", "dagger", "ddagger"),
    *("textbackslash", "textasciitilde", "textasciicircum", "textbar", "approx", "times", "pm", "leq", "geq", "to"),
    *("mu", "&", "%", "$", "#", "_", "{", "}", "\\", ","),
}
ENVIRONMENTS = {"table", "tabular"}


def check(text: str) -> list[tuple[int, int]]:
    """Return columns and rows of each tabular.

    Raises:
        ValueError: Something that LaTeX would refuse, or print as something else.
    """
    text = re.sub(r"(?<!\\)%.*", "", text)
    unknown = set(re.findall(r"\\([a-zA-Z]+|.)", text.replace("\n", " "))) - KNOWN
    if unknown:
        raise ValueError(f"unknown commands {unknown}")
    _check_nesting(text)
    tables = re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", text, re.DOTALL)
    outside = re.sub(r"\\begin\{tabular\}.*?\\end\{tabular\}", "", text, flags=re.DOTALL)
    for part in (outside, *(body for _, body in tables)):
        _check_characters(part, in_table=part is not outside)
    return [(len(columns), _rows(body, len(columns))) for columns, body in tables]


def _check_nesting(text: str) -> None:
    opened: list[str] = []
    for found in re.finditer(r"\\(begin|end)\{(\w+)\}|\\.|[{}]", text, re.DOTALL):
        token = found[0]
        if found[1] == "begin":
            if found[2] not in ENVIRONMENTS:
                raise ValueError(f"unknown environment {found[2]}")
            opened.append(found[2])
        elif token == "{":
            opened.append("{")
        elif (found[1] == "end" or token == "}") and (not opened or opened.pop() != (found[2] or "{")):
            raise ValueError(f"'{token}' closes what was not opened, after {text[: found.start()][-60:]!r}")
    if opened:
        raise ValueError(f"never closed: {opened}")


def _check_characters(text: str, *, in_table: bool) -> None:
    plain = re.sub(r"\\[a-zA-Z]+|\\.", " ", text, flags=re.DOTALL)
    if plain.count("$") % 2:
        raise ValueError("a formula is not closed")
    words = re.sub(r"\$[^$]*\$", " ", plain)
    bad = set('_^#<>|"' + ("" if in_table else "&")) & set(words)
    bad |= {character for character in text if ord(character) > 127 and not character.isalpha()}
    if bad:
        raise ValueError(f"characters that LaTeX reads otherwise: {bad}")


def _rows(body: str, columns: int) -> int:
    rules = r"\\(?:top|mid|bottom)rule|\\cmidrule\(lr\)\{[\d-]+\}"
    *rows, rest = re.split(r"\\\\", re.sub(rules, "", body))
    if rest.strip():
        raise ValueError(f"a row without end: {rest!r}")
    for row in rows:
        cells = re.split(r"(?<!\\)&", row)
        width = sum(int(found[1]) if (found := re.search(r"\\multicolumn\{(\d+)\}", cell)) else 1 for cell in cells)
        if width != columns:
            raise ValueError(f"{width} cells in a row of {columns}: {row!r}")
    return len(rows)
