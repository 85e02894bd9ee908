"""Ontology files (OBO, or OWL as RDF/XML) -> concepts, by pronto.

Guarantee: nothing is fetched from a network, whatever the file imports. A line that breaks the OBO grammar, a term
without a name, a parent that is not there or a circle of parents becomes a recorded problem and the rest is used; a
file of which little is left is a `UserError`.
"""

from __future__ import annotations

import io
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree.ElementTree import ParseError

from medvlp.errors import UserError
from medvlp.sources.base import Problem

if TYPE_CHECKING:
    import pronto

_FORMATS = "Give a file in OBO or in OWL as RDF/XML."
_LARGEST_SHARE_BROKEN = 0.05
_DATABASES = {"UMLS_CUI": "UMLS", "NCI": "NCIT", "NCI_THESAURUS": "NCIT", "MSH": "MESH", "SNOMEDCT": "SNOMEDCT_US"}
_ID = re.compile(r"(?m)^id: *(\S+)")
_RELEASE = re.compile(r"_\d{4}_\d{2}_\d{2}$")


@dataclass(frozen=True, slots=True)
class Synonym:
    """Another name; `scope` is EXACT, NARROW, BROAD or RELATED, as in OBO."""

    text: str
    scope: str


@dataclass(frozen=True, slots=True)
class Concept:
    """A term of an ontology. Ids are as in the file ("DOID:1612"); `relations` are (type, other id)."""

    id: str
    name: str
    synonyms: tuple[Synonym, ...] = ()
    definition: str | None = None
    parents: tuple[str, ...] = ()
    relations: tuple[tuple[str, str], ...] = ()
    xrefs: tuple[str, ...] = ()
    alternate_ids: tuple[str, ...] = ()
    obsolete: bool = False
    replaced_by: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True)
class OntologyFile:
    """What one file holds: name and version as it gives them, its concepts in the order of their ids, and problems."""

    name: str
    version: str | None
    concepts: tuple[Concept, ...]
    problems: tuple[Problem, ...]


def normal_xref(reference: str) -> str:
    """Return a cross reference with the usual name of its database: UMLS_CUI:C1 -> UMLS:C1, NCI:C2 -> NCIT:C2."""
    database, colon, code = reference.partition(":")
    database = _RELEASE.sub("", database)
    return f"{_DATABASES.get(database.upper(), database)}{colon}{code}"


def read_ontology(path: str | Path) -> OntologyFile:
    """Read an ontology file.

    Raises:
        UserError: It is missing, is no ontology, has no terms, or more than 5 % of an OBO file's terms are broken.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError("There is no ontology file.", file, _FORMATS)
    content = file.read_bytes()
    problems: list[Problem] = []
    stubs: frozenset[str] = frozenset()
    start = content.lstrip(b"\xef\xbb\xbf \t\r\n")[:200]
    if start.startswith((b"format-version", b"!")):
        content, stubs = _with_stubs(_mended(content, file, problems))
    elif start.startswith((b"<?xml", b"<rdf:RDF", b"<!DOCTYPE")):
        content = _with_owl_stubs(content)
    else:
        raise UserError("The file is neither OBO (it would begin with format-version) nor OWL.", file, _FORMATS)
    ontology = _parse(content, file)
    concepts = _concepts(ontology, file.name, stubs, problems)
    if not concepts:
        raise UserError("The ontology holds no term with a name.", file, _FORMATS)
    metadata = ontology.metadata
    return OntologyFile(metadata.ontology or file.stem, metadata.data_version, concepts, tuple(problems))


def _parse(content: bytes, file: Path) -> pronto.Ontology:
    import pronto

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of syntax that has no meaning for us
            return pronto.Ontology(io.BytesIO(content), import_depth=0, timeout=0)
    except (ValueError, SyntaxError, ParseError, KeyError, TypeError, AttributeError, UnicodeError) as error:
        raise UserError(
            f"The file is no ontology that can be read: {error}.", file, "Download it again, or convert it to OBO."
        ) from error


def _with_stubs(text: str) -> tuple[bytes, frozenset[str]]:
    """Return an OBO file with an empty term or relation for each that is named and not there, and the ids of the terms.

    The parser needs them; they become no concepts.
    """
    blocks = text.split("\n\n")
    ids = {
        kind: {m[1] for b in blocks if b.startswith(kind) and (m := _ID.search(b))} for kind in ("[Term]", "[Typedef]")
    }
    terms = frozenset(re.findall(r"(?m)^is_a: *(\S+)", "\n\n".join(b for b in blocks if b.startswith("[Term]"))))
    kinds = frozenset(re.findall(r"(?m)^(?:relationship|intersection_of): *(\S+) +\S+:\S+", text))
    stubs = terms - ids["[Term]"]
    extra = [f"[Term]\nid: {name}" for name in sorted(stubs)]
    extra += [f"[Typedef]\nid: {name}" for name in sorted(kinds - ids["[Typedef]"])]
    return ("\n\n".join([text.rstrip("\n"), *extra]) + "\n").encode(), stubs


def _with_owl_stubs(content: bytes) -> bytes:
    """Return an OWL file with an empty class for each parent that it names and does not hold: the parser needs them."""
    declared = set(re.findall(rb'<owl:Class\s+rdf:about="([^"]+)"', content))
    missing = set(re.findall(rb'<rdfs:subClassOf\s+rdf:resource="([^"]+)"', content)) - declared
    body, end, rest = content.rpartition(b"</rdf:RDF>")
    extra = b"".join(b'<owl:Class rdf:about="%s"/>\n' % name for name in sorted(missing))
    return body + extra + end + rest if end else content


def _mended(content: bytes, file: Path, problems: list[Problem]) -> str:
    """Return an OBO file without the lines that its grammar does not allow; each is a problem."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"The file is no UTF-8 text: {error}.", file, "Download it again.") from error
    blocks = re.split(r"\n\s*\n", text.replace("\r\n", "\n").strip("\n"))
    kept, broken, first_line = [], 0, 1
    for block in blocks:
        lines = _good_lines(block, first_line, file, problems)
        broken += lines is None
        kept.append("\n".join(lines or []))
        first_line += block.count("\n") + 2
    _report_repeated(kept, file, problems)
    terms = sum(block.startswith("[") for block in blocks)
    if broken > max(_LARGEST_SHARE_BROKEN * terms, 0.5 if terms < 2 else 1):
        raise UserError(
            f"{broken} of {terms} terms cannot be read. First: {problems[0].path}: {problems[0].reason}.",
            file,
            "Download the file again.",
        )
    return "\n\n".join(block for block in kept if block) + "\n"


def _good_lines(block: str, first_line: int, file: Path, problems: list[Problem]) -> list[str] | None:
    """Return the lines of a block that obey the grammar; None where nothing useful is left."""
    import fastobo

    lines = block.split("\n")
    numbers = list(range(first_line, first_line + len(lines)))
    while lines:
        try:
            fastobo.loads("\n".join(lines) + "\n")
        except SyntaxError as error:
            at = max(1, min(error.lineno or 1, len(lines)))
            problems.append(
                Problem(f"{file.name}:{numbers[at - 1]}", f"the line breaks the OBO grammar: {lines[at - 1][:80]!r}",
                        "Nothing to do: the line is left out. Correct it if it matters.")
            )  # fmt: skip
            essential = lines[at - 1].startswith(("id:", "["))
            del lines[at - 1], numbers[at - 1]
            if essential:
                return None
        else:
            return lines
    return None


def _report_repeated(blocks: list[str], file: Path, problems: list[Problem]) -> None:
    ids = Counter(match[1] for block in blocks if block.startswith("[Term]") and (match := _ID.search(block)))
    for name in sorted(name for name, count in ids.items() if count > 1):
        problems.append(Problem(file.name, f"the id {name} is given to {ids[name]} terms; the last one counts",
                                "Give every term an id of its own.", None))  # fmt: skip


def _concepts(
    ontology: pronto.Ontology, file: str, stubs: frozenset[str], problems: list[Problem]
) -> tuple[Concept, ...]:
    given = sorted(term.id for term in ontology.terms() if term.id not in stubs)
    known = set(given)
    concepts = []
    for name in given:
        term = ontology.get_term(name)
        if not (term.name or "").strip() and not term.obsolete:
            problems.append(Problem(file, f"the term {name} has no name", "Nothing to do: it is left out."))
            continue
        parents = _parents(ontology, name)
        concepts.append(
            Concept(
                id=name,
                name=" ".join((term.name or "").split()),
                synonyms=_synonyms(ontology, term),
                definition=str(term.definition) if term.definition else None,
                parents=tuple(sorted(parents)),
                relations=_relations(ontology, term, known),
                xrefs=tuple(sorted({normal_xref(reference.id) for reference in term.xrefs})),
                alternate_ids=tuple(sorted(term.alternate_ids)),
                obsolete=bool(term.obsolete),
                replaced_by=tuple(sorted(term.replaced_by.ids)),
                source=file,
            )
        )  # fmt: skip
    return tuple(concepts)


def _synonyms(ontology: pronto.Ontology, term: pronto.Term) -> tuple[Synonym, ...]:
    import pronto

    while True:
        try:
            given = term.synonyms
            break
        except ValueError as error:  # a synonym type that the file uses and does not declare: declare it
            kind = re.fullmatch(r"undeclared synonym type: (\S+)", str(error))
            if kind is None:
                raise
            ontology.metadata.synonymtypedefs.add(pronto.SynonymType(kind[1], kind[1]))
    found = {Synonym(" ".join(s.description.split()), s.scope or "RELATED") for s in given if s.description.strip()}
    return tuple(sorted(found, key=lambda s: (s.scope, s.text)))


def _relations(ontology: pronto.Ontology, term: pronto.Term, known: set[str]) -> tuple[tuple[str, str], ...]:
    while True:
        try:
            given = list(term.relationships.items())
            break
        except KeyError as error:  # a relation that the file uses and does not declare: declare it
            ontology.create_relationship(str(error.args[0]))
    return tuple(sorted({(relation.id, other) for relation, others in given for other in others.ids if other in known}))


def _parents(ontology: pronto.Ontology, name: str) -> set[str]:
    """Return direct parents, those that the file does not hold included; a term that is its own parent has no link."""
    while True:
        try:
            return {parent.id for parent in ontology.get_term(name).superclasses(distance=1, with_self=False)} - {name}
        except KeyError as error:  # pronto knows no term of this id: let it have an empty one
            ontology.create_term(str(error.args[0]))
