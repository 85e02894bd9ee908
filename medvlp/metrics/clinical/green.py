"""GREEN: a language model lists the errors of a generated report, and the score counts them.

Guarantee: an answer is read and scored as the package green_score does (Ostmeier et al., Findings of EMNLP 2024), but
an answer that broke off has no value. The model runs from a local folder, greedily. The wording of its question belongs
to the release and is not part of medvlp: it is read from a file beside the weights; another wording gives other values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medvlp.errors import UserError
from medvlp.models.text_families import check_hub_loading

if TYPE_CHECKING:
    from jaxtyping import Float

QUESTION = "question.txt"
"""File beside the weights: the question, with {reference} and {candidate} where the reports go."""
ERRORS = (
    "false finding",
    "missing finding",
    "wrong place",
    "wrong severity",
    "comparison that is not in the reference",
    "omitted comparison",
)
"""Kinds of significant errors, (a) to (f) of an answer."""
_LONGEST = 2048
_REPORT_WORDS = 300


@dataclass(frozen=True, slots=True)
class GreenCounts:
    """Clinically significant errors of each of `ERRORS`, and findings that agree."""

    errors: tuple[int, ...]
    matched: int

    @property
    def score(self) -> float:
        """Return matched / (matched + errors); 0 where nothing agrees."""
        return self.matched / (self.matched + sum(self.errors)) if self.matched else 0.0


def read_answer(answer: str) -> GreenCounts | None:
    """Return what an answer counts; None where it lacks the part on errors or that on matches.

    The package takes a missing part for a count of 0, so that an answer that broke off scores as if it were complete.
    """
    errors, matched = _part(answer, "Clinically Significant Errors"), _part(answer, "Matched Findings")
    if errors is None or matched is None:
        return None
    number = re.match(r"(\d+)\.", matched)
    return GreenCounts(_error_counts(errors), int(number[1]) if number else 0)


def _part(answer: str, title: str) -> str | None:
    """Return the text below a title, up to an empty line; empty where it says that there is nothing."""
    found = re.search(rf"\[{title}\]:\s*(.*?)(?:\n\s*\n|\Z)", answer, re.DOTALL)
    if found is None:
        return None
    return "" if found[1].startswith("No") else found[1]


def _error_counts(text: str) -> tuple[int, ...]:
    """Return the number after each of (a) to (f), or (1) to (6); of several lines of one kind the last by alphabet."""
    for names in ("abcdef", "123456"):
        lines = sorted(re.findall(rf"\([{names[0]}-{names[-1]}]\) .*", text))
        if not lines:
            continue
        counts = dict.fromkeys(names, 0)
        for line in lines:
            if number := re.search(r"(?<=: )\d+(?=\.)", line):
                counts[line[1]] = int(number[0])
        return tuple(counts.values())
    return (0,) * len(ERRORS)


class Green:
    """The released model.

    Args:
        folder: Hugging Face folder of GREEN (a Llama), with `question.txt`.
        device: Torch device.
        half: Weights in 16 bits, as the package runs it.

    Raises:
        UserError: A file is missing, the question lacks a place for a report, or the weights do not fit.
    """

    def __init__(self, folder: Path, device: str = "cpu", half: bool = True) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.question = _question(folder / QUESTION)
        loader: Any = AutoModelForCausalLM
        try:
            model, info = loader.from_pretrained(
                folder,
                local_files_only=True,
                output_loading_info=True,
                weights_only=True,
                dtype=torch.float16 if half else torch.float32,
            )
            tokeniser: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, padding_side="left")
        except (OSError, ValueError, KeyError) as error:
            fix = "It needs config.json, weights and tokenizer files of GREEN; or leave GREEN out."
            raise UserError(f"GREEN cannot be loaded: {str(error).splitlines()[0]}", folder, fix) from error
        check_hub_loading(info, folder, ("lm_head.",) if model.config.tie_word_embeddings else ())
        self.model, self.tokeniser, self.device = model.eval().to(device), tokeniser, device

    def scores(self, generated: Sequence[str], reference: Sequence[str]) -> Float[np.ndarray, " n"]:
        """Return GREEN of each pair, NaN where the model gave no usable answer; that of a set is the mean."""
        counts = [read_answer(self.answer(own, other)) for own, other in zip(generated, reference, strict=True)]
        return np.array([np.nan if count is None else count.score for count in counts])

    @torch.inference_mode()
    def answer(self, generated: str, reference: str) -> str:
        """Return what the model says of one pair."""
        end = self.tokeniser.eos_token
        reports = {"reference": _shortened(reference), "candidate": _shortened(generated)}
        asked = re.sub(r"\{(reference|candidate)\}", lambda place: reports[place[1]], self.question)
        # The package's chat template closes an empty answer before it asks for one, and ends on the closing token.
        text = f"<|user|>\n{asked}{end}\n<|assistant|>\n{end}\n<|assistant|>\n{end}"
        batch = self.tokeniser(text, truncation=True, max_length=_LONGEST, return_tensors="pt").to(self.device)
        ids = self.model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_length=_LONGEST,
            do_sample=False,
            eos_token_id=self.tokeniser.eos_token_id,
            pad_token_id=self.tokeniser.eos_token_id,
        )
        return self.tokeniser.decode(ids[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def _shortened(report: str) -> str:
    return " ".join(report.split()[:_REPORT_WORDS])


def _question(file: Path) -> str:
    fix = f"Write the question of GREEN's release to {QUESTION}, with {{reference}} and {{candidate}} for the reports."
    if not file.is_file():
        raise UserError("GREEN has no question.", file, fix)
    text = file.read_text(encoding="utf-8")
    if "{reference}" not in text or "{candidate}" not in text:
        raise UserError("GREEN's question has no place for both reports.", file, fix)
    return text
