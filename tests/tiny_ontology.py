"""Small ontology files for tests."""

from __future__ import annotations

from pathlib import Path

HEAD = "format-version: 1.2\nontology: tiny\n"

TINY = f"""{HEAD}
[Term]
id: D:1
name: disease

[Term]
id: D:2
name: lung disease
is_a: D:1

[Term]
id: D:3
name: pneumonia
def: "An infection of the lung." [x:1]
synonym: "lung infection" EXACT []
synonym: "chest infection" RELATED []
alt_id: D:30
xref: UMLS_CUI:C0032285
xref: NCI:C3333
is_a: D:2
relationship: located_in A:1

[Term]
id: D:4
name: bacterial pneumonia
is_a: D:3

[Term]
id: D:5
name: edema of lung
synonym: "pulmonary oedema" EXACT []
is_a: D:2

[Term]
id: D:6
name: obsolete grippe
is_obsolete: true
replaced_by: D:3

[Term]
id: A:1
name: lung

[Typedef]
id: located_in
name: located in
"""


def write(folder: Path, text: str = TINY, name: str = "tiny.obo") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def terms(*bodies: str) -> str:
    return HEAD + "".join(f"\n[Term]\n{body}\n" for body in bodies)
