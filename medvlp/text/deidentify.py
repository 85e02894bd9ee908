"""Free text without the person it is about: names, numbers, addresses and dates of a report are replaced.

Guarantee: every string that the caller names as identifying is gone from the result, whatever its case and spacing;
beyond that, patterns find what reports usually hold. Rules are a floor, not a proof: names that stand without a title,
a label or a signature are found only if they are named, or by Presidio with a language model of the user's.

What is replaced becomes a tag such as [NAME] or [DATE]; a date that can be read without doubt becomes its distance from
the study's date, e.g. [14 days before].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import date
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml

from medvlp.text.known_names import without_known

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_OTHER_MONTHS = (
    r"jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?"
)
_MONTH = rf"(?:{_OTHER_MONTHS}|may)\.?"
_OTHER_LANGUAGES = (
    r"januar|februar|m(?:\u00e4|ae)rz|mai|juni|juli|oktober|dezember|enero|febrero|marzo|abril|mayo|junio|julio|agosto"
    r"|septiembre|octubre|noviembre|diciembre|janvier|f\u00e9vrier|mars|avril|juin|juillet|ao\u00fbt|septembre|octobre"
    r"|novembre|d\u00e9cembre"
)
_ENGLISH_TITLE = r"(?:Dr|DR|Mr|MR|Mrs|MRS|Ms|MS|Miss|Prof|Professor|Doctor|Sir)"
_TITLE = (
    rf"(?:{_ENGLISH_TITLE}|Herrn?|Frau|Doktor|Sr|Sra|Srta|Dra|Se\u00f1or|Se\u00f1ora|Don|Do\u00f1a|Mme|Mlle|Madame"
    r"|Monsieur)"
)
_PARTICLE = r"(?:de|da|del|la|le|van|von|der|den|bin|al|y|zu|dos)(?=[ \t])"
_CAPITAL = (
    r"[A-Z\u00c0-\u00d6\u00d8-\u00de\u0104\u0106\u010c\u0110\u0118\u011e\u0130\u0141\u0143\u015a\u015e\u0160\u0179\u017b"
    r"\u017d]"
)
_CAPITALISED = rf"{_CAPITAL}[\w'\u2019-]+"
_PERSON = (
    rf"(?!{_TITLE}\b)(?:(?:{_CAPITAL}\.[ \t-]*){{1,3}}|(?:{_PARTICLE}[ \t]+){{1,3}})?{_CAPITALISED}"
    rf"(?:(?:[ \t]+|,[ \t]*)(?:{_CAPITAL}\.?(?![\w])|{_PARTICLE}|{_CAPITALISED})){{0,4}}"
)
_LINE_PERSON = rf"[^\n,;:]{{2,60}}(?:,[ \t]*(?-i:{_CAPITALISED})){{0,2}}"

_DATES: tuple[tuple[str, str], ...] = (
    (r"(?<![\d.])(?P<y>(?:19|20)\d\d)[-/.](?P<m>\d{1,2})[-/.](?P<d>\d{1,2})(?!\d)", "ymd"),
    (r"(?<!\d)(?P<y>(?:19|20)\d\d)(?P<m>0[1-9]|1[0-2])(?P<d>0[1-9]|[12]\d|3[01])(?!\d)", "ymd"),
    (rf"\b(?P<d>\d{{1,2}})(?:st|nd|rd|th)?[ \t-]+(?:of[ \t]+)?(?P<m>{_MONTH})[ \t,-]+(?P<y>(?:19|20)\d\d)\b", "name"),
    (rf"\b(?P<m>{_MONTH})[ \t]+(?P<d>\d{{1,2}})(?:st|nd|rd|th)?[ \t]*,?[ \t]+(?P<y>(?:19|20)\d\d)\b", "name"),
    (r"(?<![\d.])\d{1,2}[-/.]\d{1,2}[-/.](?:19|20)?\d\d(?!\d|\.\d)", "doubtful"),
    (
        rf"\b(?:{_MONTH}[ \t]+(?:of[ \t]+)?(?:19|20)\d\d"
        rf"|\d{{1,2}}(?:st|nd|rd|th)?[ \t]+(?:{_OTHER_MONTHS}|(?-i:May)))\b",
        "doubtful",
    ),
    (
        rf"\b(?:\d{{1,2}}\.?[ \t]+(?:de[ \t]+)?(?:{_OTHER_LANGUAGES})(?:\.?[ \t]+(?:de[ \t]+)?(?:19|20)\d\d)?"
        rf"|(?:{_OTHER_LANGUAGES})[ \t]+(?:de[ \t]+)?(?:19|20)\d\d)\b",
        "doubtful",
    ),
    (rf"\b\d{{1,2}}\.[ \t]+(?:{_OTHER_MONTHS}|may)[ \t]+(?:19|20)\d\d\b", "doubtful"),
)

_AGE = re.compile(r"\b(?P<n>9\d|1[01]\d)(?=[ -]*(?:years?|yrs?|y/?o|y\.o\.|year-old)\b)", re.IGNORECASE)


@cache
def _compiled() -> tuple[list[tuple[re.Pattern[str], str]], list[tuple[str, re.Pattern[str]]]]:
    dates = [(re.compile(pattern, re.IGNORECASE), kind) for pattern, kind in _DATES]
    rules = []
    for rule in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")):
        pattern = f"(?P<before>{rule.get('before', '')})(?P<what>{rule['what']})"
        for name, meaning in (
            ("<PERSON>", _PERSON),
            ("<LINE>", _LINE_PERSON),
            ("<TITLE>", _TITLE),
            ("<CAPITAL>", _CAPITAL),
        ):
            pattern = pattern.replace(name, meaning)
        rules.append((rule["tag"], re.compile(pattern, re.IGNORECASE | re.VERBOSE)))
    return dates, rules


def deidentify(text: str, *, known: Iterable[str] = (), study_date: str | None = None) -> str:
    """Return the text without what identifies a person.

    Args:
        text: A report.
        known: Strings that identify this patient, such as name, number and accession, as `without_known` takes them.
        study_date: YYYYMMDD; a full date in the text then becomes its distance in days.
    """
    text = without_known(text, known)
    dates, rules = _compiled()
    for pattern, kind in dates:
        text = pattern.sub(partial(_date_tag, kind=kind, study_date=study_date), text)
    for tag, pattern in rules:
        text = pattern.sub(rf"\g<before>[{tag}]", text)
    return _AGE.sub("over 89", text)


def _date_tag(match: re.Match[str], kind: str, study_date: str | None) -> str:
    if kind == "doubtful" or study_date is None:
        return "[DATE]"
    month = match["m"]
    number = int(month) if kind == "ymd" else _MONTHS.index(month[:3].lower()) + 1
    try:
        days = (date(int(match["y"]), number, int(match["d"])) - date.fromisoformat(study_date)).days
    except ValueError:
        return "[DATE]"
    if days == 0:
        return "[same day]"
    return f"[{abs(days)} {'day' if abs(days) == 1 else 'days'} {'before' if days < 0 else 'after'}]"


def presidio(model: str, language: str = "en") -> Callable[[str], str]:
    """Return a function that replaces what Presidio finds, with a spaCy model that is on this machine.

    Args:
        model: Name of an installed spaCy package, or a folder that holds a model.
        language: Of the model.

    Raises:
        UserError: Presidio or the model is not installed; nothing is downloaded.
    """
    from medvlp.errors import UserError

    try:
        import spacy
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import SpacyNlpEngine
    except ImportError:
        raise UserError(
            "Presidio is not installed.", "identifiers.text", "Install medvlp[presidio], or set identifiers.text=rules."
        ) from None
    try:
        pipeline = spacy.load(model)
    except OSError:
        raise UserError(
            f"There is no spaCy model '{model}'.",
            "identifiers.model",
            "Name an installed spaCy package or a folder with a model; medvlp downloads none.",
        ) from None

    class _Local(SpacyNlpEngine):
        def __init__(self) -> None:
            super().__init__(models=[{"lang_code": language, "model_name": model}])
            self.nlp: Any = {language: pipeline}

    registry = RecognizerRegistry(supported_languages=[language])
    registry.load_predefined_recognizers(languages=[language])
    engine = AnalyzerEngine(nlp_engine=_Local(), registry=registry, supported_languages=[language])

    def replace(text: str) -> str:
        found: list[Any] = sorted(engine.analyze(text=text, language=language), key=lambda entity: entity.start)
        pieces, end = [], 0
        for entity in found:
            if entity.start >= end:
                pieces += [text[end : entity.start], f"[{entity.entity_type}]"]
            end = max(end, entity.end)
        return "".join([*pieces, text[end:]])

    return replace
