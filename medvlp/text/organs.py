"""What a report says of each organ: its sentences, sorted by the anatomy words that they hold.

Guarantee: a sentence goes to every organ that it names, by the organ's own words or by a finding that lies nowhere
else (a pleural effusion is about the lungs, a hiatal hernia about the oesophagus); one that names none goes nowhere. An
organ of which nothing is said has the sentence of `normal_text`, as in fVLM (arXiv 2501.14548), whose organ texts are
made by a language model. An organ is normal where every sentence about it says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from medvlp.text.sections import BODY_SECTIONS, find_sections, split_sentences
from medvlp.text.statements import normalise
from medvlp.text.triplets import read_sentence_triplets
from medvlp.types import ABSENT

_WORDS = {
    "lung": r"lungs?|pulmonary(?! (?:arter|trunk|vein))|lobes?|lobar|lingula\w*|pleura\w*|(?:peri)?bronch\w+|airways?"
    r"|parenchyma\w*|bibasal|bibasilar|subpleural|fissures?|interlobular|pneumothora\w+|atelecta\w+|emphysema\w*"
    r"|pneumonia\w*|consolidations?|ground[- ]glass|honeycomb\w*|bullae?|hemithora\w+|costophrenic",
    "heart": r"heart|cardiac|cardio\w+|pericardi\w+|ventric\w+|atri(?:um|al|a)|coronar\w+|valv\w+|myocardi\w+",
    "esophagus": r"o?esophag\w+|hiatal|hiatus",
    "aorta": r"aort\w+|arterial walls?|atheroscle\w+|vascular calcification",
    "mediastinum": r"mediastin\w+|hil(?:um|a|ar)|lymph nodes?|lymphadenopath\w+|adenopath\w+|trachea\w*|thym\w+",
    "thyroid": r"thyroid\w*",
    "breast": r"breasts?|mammary|axilla\w*",
    "liver": r"liver|hepat\w+",
    "gallbladder": r"gall ?bladder|biliary|bile ducts?|cholelith\w+|gallstones?|cholecyst\w+",
    "spleen": r"spleen|splen\w+",
    "pancreas": r"pancrea\w+",
    "kidney": r"kidneys?|renal|nephro\w+|hydronephrosis|ureter\w*|perinephric",
    "adrenal": r"adrenals?(?: glands?)?",
    "stomach": r"stomach|gastric",
    "bowel": r"bowels?|colon\w*|colic|sigmoid|rect(?:um|al)|duoden\w+|jejun\w+|ile(?:um|al)|append\w+|cec(?:um|al)"
    r"|diverticul\w+",
    "bladder": r"(?<!gall )(?<!gall)bladder",
    "bone": r"bones?|bony|osseous|ribs?|spin(?:e|al)|vertebra\w*|stern\w+|clavicl\w+|scapula\w*|fractures?|osteo\w+"
    r"|degenerative|scoliosis|kyphosis",
}
_OF_LUNG = (
    r"effusions?|nodules?|opacit\w+|opacification|o?edema|fibro\w+|reticula\w+|septal|infiltrat\w+|granulomas?|mosaic"
    r"|apex|apices|apical|bases?|basal|basilar|masses|mass|interstiti\w+"
)
"""Words that mean the lungs in a sentence that names no organ."""


def _pattern(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-])(?:{words})(?![\w-])")


_PATTERNS = {organ: _pattern(words) for organ, words in _WORDS.items()}
_LUNG_ALONE = _pattern(_OF_LUNG)
_HEALTHY = frozenset(("normal", "clear", "sharp", "sharply", "unremarkable", "intact", "free", "stable", "aerate"))
"""Entries of the lexicon that praise."""
ORGANS = tuple(_WORDS)
"""Organs that sentences are sorted by."""


@dataclass(frozen=True, slots=True)
class OrganText:
    """What is said of one organ.

    Args:
        text: Its sentences, or `normal_text` where there is none.
        normal: Every sentence denies findings or calls the organ normal; one that the lexicon cannot read does neither.
        mentioned: There is a sentence.
    """

    text: str
    normal: bool
    mentioned: bool


def normal_text(organ: str) -> str:
    """Return what stands for an organ of which a report says nothing."""
    return f"{organ} shows no significant abnormalities."


@lru_cache(maxsize=1 << 15)
def organs_of(sentence: str) -> tuple[str, ...]:
    """Return the organs that a sentence is about, in the order of `ORGANS`."""
    words = normalise(sentence)
    named = tuple(organ for organ, pattern in _PATTERNS.items() if pattern.search(words))
    return named or (("lung",) if _LUNG_ALONE.search(words) else ())


@lru_cache(maxsize=1 << 14)
def organ_texts(report: str, organs: tuple[str, ...]) -> tuple[OrganText, ...]:
    """Return what a report says of each organ.

    Args:
        report: With or without headings; of one with headings the sections that state what was seen are read.
        organs: Names in `ORGANS`.
    """
    sentences = list(dict.fromkeys(_sentences(report)))
    made = []
    for organ in organs:
        own = [sentence for sentence in sentences if organ in organs_of(sentence)]
        normal = all(_reads_normal(sentence) for sentence in own)
        made.append(OrganText(" ".join(own) or normal_text(organ), normal, bool(own)))
    return tuple(made)


@lru_cache(maxsize=1 << 14)
def organ_parts(report: str) -> tuple[str, ...]:
    """Return what a report says of each organ that it speaks of: the parts that Merlin splits a report into."""
    return tuple(dict.fromkeys(part.text for part in organ_texts(report, ORGANS) if part.mentioned))


def _sentences(report: str) -> list[str]:
    bodies = [report[part.start : part.end] for part in find_sections(report) if part.name in BODY_SECTIONS]
    return [sentence for body in bodies for sentence in split_sentences(body)]


def _reads_normal(sentence: str) -> bool:
    mentions = read_sentence_triplets(normalise(sentence))
    return bool(mentions) and all((mention.value == ABSENT) != (mention.finding in _HEALTHY) for mention in mentions)
