"""Answers of a fine-tuned model to questions about image files or volumes: one row per image and question.

Guarantee: an answer is one that training has seen, to a question whose sort is known: closed or open as the training
questions of that wording were, or as the user says. A question of which the model knows no word gets no answer, and one
with words that are new to it a note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medvlp.data.transforms import normalise
from medvlp.errors import UserError
from medvlp.infer.images import Bad
from medvlp.infer.seen import Seen, SeenVolume, input_of
from medvlp.tasks._answerer import Answerer
from medvlp.tasks.vqa import wording

if TYPE_CHECKING:
    from jaxtyping import Int

    from medvlp.tasks._tuned import TunedModel

QUESTION, CLOSED = "question", "closed"


@dataclass(frozen=True)
class Asked:
    """A question, whether it is closed, and what has to be said of it."""

    text: str
    closed: bool
    note: str


def read_questions(path: Path, model: TunedModel) -> list[Asked]:
    """Read a CSV with the column `question`, and perhaps `closed` (1, 0, or blank: as training has the wording).

    Raises:
        UserError: Lists every question that cannot be asked, with the reason.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        fix = "Give a CSV file with the column question."
        raise UserError(f"The questions cannot be read: {error}", path, fix) from error
    if QUESTION not in table or not len(table):
        found = f"columns: {', '.join(map(str, table.columns))}" if QUESTION not in table else "it has no row"
        raise UserError(f"The file names no question ({found}).", path, "Give the column question, one a row.")
    texts = table[QUESTION].str.strip().tolist()
    said = (table[CLOSED].str.strip() if CLOSED in table else pd.Series([""] * len(table))).tolist()
    network = model.network
    assert isinstance(network, Answerer)
    asked = [_asked(network, text, closed) for text, closed in zip(texts, said, strict=True)]
    bad = [f"row {row}: {one}" for row, one in enumerate(asked, start=1) if isinstance(one, str)]
    if bad:
        raise UserError(
            f"{len(bad)} of {len(asked)} questions cannot be asked: {'; '.join(bad[:8])}.",
            path,
            "Mend or remove them; the column closed says 1 (yes or no, one of a choice) or 0.",
        )
    return [one for one in asked if isinstance(one, Asked)]


def _asked(network: Answerer, text: str, said: str) -> Asked | str:
    """Return the question, or why it cannot be asked."""
    assert network.words is not None
    known, new = ([word for word in own if word.isalnum()] for own in network.words.known(wording(text)))
    if not known:
        return "it is blank" if not new else "training has none of its words"
    sorts = network.learnt.wordings.get(wording(text), ())
    if said not in ("", "0", "1"):
        return f"closed is '{said}', which is neither 1 nor 0"
    if not said and len(sorts) != 1:
        return "training has no question of this wording, and it is not said whether it is closed"
    closed = said == "1" if said else sorts[0]
    if not (network.learnt.closed if closed else network.learnt.open):
        return f"training has no {'closed' if closed else 'open'} question"
    notes = [] if sorts else ["training has no question of this wording"]
    notes += [f"words that training does not have: {', '.join(new)}"] if new else []
    return Asked(text, closed, "; ".join(notes))


class Replying:
    """From images to the answers of all questions; see `read_questions`."""

    def __init__(self, model: TunedModel, asked: Sequence[Asked]) -> None:
        self.model, self.asked = model, asked

    def __call__(self, seen: Sequence[tuple[str, Seen | SeenVolume]], first: int) -> list[list[dict[str, Any]] | Bad]:
        """Return for each image a row for each question."""
        inputs = [input_of(name, one, self.model.preprocessing.input) for name, one in seen]
        pixels = [own for own in inputs if not isinstance(own, Bad)]
        found = iter(self._answers(torch.cat(pixels)) if pixels else [])
        fix = "Check the image; report it if it is sound."
        return [
            own if isinstance(own, Bad) else next(found) or Bad(name, "The model gives no finite number for it.", fix)
            for (name, _), own in zip(seen, inputs, strict=True)
        ]

    @torch.no_grad()
    def _answers(self, pixels: Int[torch.Tensor, "b c *s"]) -> list[list[dict[str, Any]]]:
        """Return the rows of each image; none where a number is not finite."""
        network, taken, device = self.model.network, self.model.preprocessing.input, self.model.device
        assert isinstance(network, Answerer)
        assert network.words is not None
        tokens = network.tower(normalise(pixels.to(device), taken)).tokens
        finite = [bool(torch.isfinite(own).all()) for own in tokens]
        answers: list[list[str]] = []
        for one in self.asked:
            ids, mask = network.words.encode([one.text] * len(pixels), self.model.task.vqa.max_tokens)
            logits = network.answer(
                tokens.nan_to_num(), torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
            )
            finite = [good and bool(torch.isfinite(own).all()) for good, own in zip(finite, logits, strict=True)]
            answers.append(network.named(logits.nan_to_num(), [one.closed] * len(pixels)))
        return [
            [self._row(one, own[place]) for one, own in zip(self.asked, answers, strict=True)] if good else []
            for place, good in enumerate(finite)
        ]

    @staticmethod
    def _row(one: Asked, answer: str) -> dict[str, Any]:
        return {QUESTION: one.text, CLOSED: int(one.closed), "answer": answer, "notes": one.note}
