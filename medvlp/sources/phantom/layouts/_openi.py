"""Reports in the XML of Open-i, as the data sets with and without images hold them."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from medvlp.sources.phantom.examples import Example

SECTIONS = ("indication", "comparison", "findings", "impression")
_XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation>
   <uId id="{study}"/>
   <MedlineCitation><Article><Abstract>
{abstract}
   </Abstract></Article></MedlineCitation>
   <MeSH>
{mesh}
   </MeSH>
{images}
</eCitation>
"""


def openi_xml(study_id: str, example: Example, images: Sequence[str] = ()) -> str:
    """Return the file of one report; an absent section is an empty element, as in the released files.

    Args:
        study_id: `CXR1` and so on.
        example: Whose report it is.
        images: Names of its images.
    """
    texts = [
        f'<AbstractText Label="{name.upper()}">{escape(example.sections.get(name, ""))}</AbstractText>'
        for name in ("comparison", "indication", "findings", "impression")
    ]
    return _XML.format(
        study=study_id,
        abstract="\n".join(texts),
        mesh="\n".join(f"<major>{term}</major>" for term in sorted(example.findings) or ["normal"]),
        images="\n".join(f'<parentImage id="{name}"><figureId>F1</figureId></parentImage>' for name in images),
    )


def joined_sections(example: Example) -> str:
    """Return the sections under their headings, a line each."""
    given = [(name.upper(), example.sections[name]) for name in SECTIONS if example.sections.get(name)]
    return "\n".join(f"{name}: {text}" for name, text in given)
