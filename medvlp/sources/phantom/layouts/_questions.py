"""Questions about an example and their answers, for the layouts of data sets of questions."""

from __future__ import annotations

from dataclasses import dataclass

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.findings import NAMES


@dataclass(frozen=True, slots=True)
class Asked:
    """A question in two wordings.

    Args:
        text: The question.
        again: The same in other words.
        answer: Of both.
        closed: Whether it is a question of yes or no.
        about: presence, finding or view.
    """

    text: str
    again: str
    answer: str
    closed: bool
    about: str


def asked_of(example: Example) -> list[Asked]:
    """Return what is asked about the first frontal image of an example: two findings, what is seen, and the view."""
    found = []
    for step in (0, 1):
        name = NAMES[(example.number + step) % len(NAMES)]
        answer = "Yes" if name in example.findings else "No"
        found.append(Asked(f"Is there {name}?", f"Does the image show {name}?", answer, True, "presence"))
    seen = ", ".join(sorted(example.findings)) or "nothing abnormal"
    found.append(Asked("What abnormality is seen?", "What is wrong in this image?", seen, False, "finding"))
    view = next(image.view for image in example.images if image.view != "LATERAL")
    found.append(Asked("Which view is this?", "In which view was this taken?", view, False, "view"))
    return found
