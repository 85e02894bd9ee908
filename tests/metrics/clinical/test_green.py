"""GREEN: answers in the released format, and a tiny Llama that is asked as the package asks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from medvlp.errors import UserError
from medvlp.metrics.clinical.green import Green, GreenCounts, read_answer

ANSWER = """[Explanation]:
    The candidate invents an effusion.

    [Clinically Significant Errors]:
    (a) False report of a finding in the candidate: 2. effusion; edema
    (b) Missing a finding present in the reference: 0.
    (c) Misidentification of a finding's anatomic location/position: 1. left for right
    ....
    (f) Omitting a comparison detailing a change from a prior study: none

    [Clinically Insignificant Errors]:
    (a) False report of a finding in the candidate: 5. many

    [Matched Findings]:
    3. heart size; clear lungs; no pneumothorax
    """


def test_an_answer_is_read() -> None:
    counts = read_answer(ANSWER)
    assert counts == GreenCounts((2, 0, 1, 0, 0, 0), 3)
    assert counts.score == pytest.approx(3 / 6)


@pytest.mark.parametrize(
    ("errors", "matched", "expected"),
    [
        ("No significant errors.", "2. a; b", 1.0),
        ("(1) False report: 1. x\n(2) Missing: 1. y", "2. a; b", 0.5),
        ("(a) False report: 1. x\n(a) Again: 3. y", "1. a", 0.5),
        ("(a) False report: 1. x", "No matched findings.", 0.0),
        ("(a) False report: 1. x", "0.", 0.0),
        ("(a) False report without number", "4. a; b; c; d", 1.0),
    ],
)
def test_forms_of_answers(errors: str, matched: str, expected: float) -> None:
    counts = read_answer(f"[Clinically Significant Errors]:\n{errors}\n\n[Matched Findings]:\n{matched}")
    assert counts is not None
    assert counts.score == pytest.approx(expected)


def test_an_answer_that_broke_off_has_no_value() -> None:
    assert read_answer("[Explanation]: nothing more") is None
    assert read_answer("[Clinically Significant Errors]:\n(a) False report: 1. x") is None


WORDS = ["<unk>", "</s>", "<|user|>", "<|assistant|>", "lungs", "are", "clear", "Compare", "with", "effusion"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=2048,
        eos_token_id=1,
        bos_token_id=0,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>").save_pretrained(tmp_path)
    (tmp_path / "question.txt").write_text("Compare {reference} with {candidate}")
    return tmp_path


def test_the_question_is_put_as_the_package_puts_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Green(folder, half=False)
    asked = []

    def generate(input_ids: torch.Tensor, **options: object) -> torch.Tensor:
        asked.append((model.tokeniser.decode(input_ids[0]), options["do_sample"], options["max_length"]))
        return torch.cat([input_ids, torch.tensor([[4, 5, 6, 1]])], dim=1)

    monkeypatch.setattr(model.model, "generate", generate)
    assert model.answer("effusion {reference}", " ".join(["clear"] * 400)).split() == ["lungs", "are", "clear"]
    text, sampled, longest = asked[0]
    words = f"<|user|> Compare {'clear ' * 300}with effusion <unk></s> <|assistant|> </s> <|assistant|> </s>"
    assert text.replace("</s>", " </s>").split() == words.replace("</s>", " </s>").split()
    assert (sampled, longest) == (False, 2048)


def test_an_unusable_answer_is_no_score(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Green(folder, half=False)
    monkeypatch.setattr(model, "answer", lambda own, other: ANSWER if own == "good" else "mumble")
    np.testing.assert_allclose(model.scores(["good", "bad"], ["x", "x"]), [0.5, np.nan])


def test_the_model_answers_greedily(folder: Path) -> None:
    model = Green(folder, half=False)
    model.model.generation_config.max_length = 60
    assert model.answer("clear", "effusion") == model.answer("clear", "effusion")


def test_missing_parts_are_named(folder: Path) -> None:
    (folder / "question.txt").write_text("Compare {reference}")
    with pytest.raises(UserError, match="no place for both"):
        Green(folder)
    (folder / "question.txt").unlink()
    with pytest.raises(UserError, match="no question"):
        Green(folder)
    (folder / "question.txt").write_text("{reference} {candidate}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        Green(folder)
