"""RaTEScore: its rule in loops, spans of entities, and two tiny models in the released formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForTokenClassification, BertModel

from medvlp.errors import UserError
from medvlp.metrics.clinical.ratescore import AFFINITIES, KINDS, RaTEScore, entity_spans, rate_score
from tests.metrics.clinical.released import WORDS, ruled, write_vocabulary

LABELS = ["O", *(f"{part}-{kind}" for kind in KINDS for part in "BI")]
OPPOSITES = [
    ("DISEASE", "NON-DISEASE"),
    ("ABNORMALITY", "NON-ABNORMALITY"),
    ("NON-DISEASE", "ABNORMALITY"),
    ("NON-ABNORMALITY", "DISEASE"),
]


def slow(a: np.ndarray, b: np.ndarray, a_kinds: list[str], b_kinds: list[str], name: str) -> float:
    """RaTEScore as its paper says it, one entity at a time."""
    affinity = AFFINITIES[name]

    def one_way(own: np.ndarray, own_kinds: list[str], other: np.ndarray, other_kinds: list[str]) -> float:
        total = weight_total = 0.0
        for vector, kind in zip(own, own_kinds, strict=True):
            cosines = [float(vector @ v / np.linalg.norm(vector) / np.linalg.norm(v)) for v in other]
            best = int(np.argmax(cosines))
            pair = (kind, other_kinds[best])
            weight = affinity.weights[KINDS.index(pair[0]), KINDS.index(pair[1])]
            against = pair in OPPOSITES or pair[::-1] in OPPOSITES
            total += cosines[best] * weight * (affinity.contradiction if against else 1)
            weight_total += weight
        return total / weight_total

    precision, recall = one_way(b, b_kinds, a, a_kinds), one_way(a, a_kinds, b, b_kinds)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("name", AFFINITIES)
def test_the_rule_equals_loops(name: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        sizes = rng.integers(1, 6, 2)
        a, b = (np.abs(rng.normal(size=(size, 4))) for size in sizes)
        a_kinds, b_kinds = ([KINDS[k] for k in rng.integers(0, 5, size)] for size in sizes)
        assert rate_score(a, b, a_kinds, b_kinds, AFFINITIES[name]) == pytest.approx(slow(a, b, a_kinds, b_kinds, name))
        assert rate_score(a, a, a_kinds, a_kinds, AFFINITIES[name]) == pytest.approx(1)
    assert rate_score(np.zeros((0, 4)), b, [], b_kinds, AFFINITIES[name]) == 0.5


def test_a_contradiction_lowers_the_score() -> None:
    vector = np.ones((1, 3))
    same, against = (
        rate_score(vector, vector, ["DISEASE"], [kind], AFFINITIES["long"]) for kind in ("DISEASE", "NON-DISEASE")
    )
    assert same == pytest.approx(1)
    assert against == pytest.approx(AFFINITIES["long"].contradiction)


@pytest.mark.parametrize(
    ("labels", "spans"),
    [
        ("O O O", []),
        ("O B-ANATOMY O O", [(1, 1, "ANATOMY")]),
        ("O B-ANATOMY I-ANATOMY I-DISEASE O O", [(1, 3, "ANATOMY")]),
        ("O B-ANATOMY B-DISEASE I-DISEASE O O", [(1, 1, "ANATOMY"), (2, 3, "DISEASE")]),
        ("O I-ANATOMY O B-DISEASE O", [(3, 3, "DISEASE")]),
        ("O O B-DISEASE I-DISEASE I-DISEASE", [(2, 3, "DISEASE")]),
        ("O B-ANATOMY B-DISEASE I-DISEASE I-DISEASE", [(1, 1, "ANATOMY")]),
        ("I-ANATOMY I-ANATOMY B-DISEASE B-DISEASE", [(2, 2, "DISEASE")]),
    ],
)
def test_spans_of_entities(labels: str, spans: list[tuple[int, int, str]]) -> None:
    assert entity_spans(labels.split()) == spans


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sizes = {
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    named = {"id2label": dict(enumerate(LABELS)), "label2id": {label: place for place, label in enumerate(LABELS)}}
    for name, model in (
        ("entities", BertForTokenClassification(BertConfig(**sizes, **named))),
        ("synonyms", BertModel(BertConfig(**sizes))),
    ):
        model.load_state_dict(ruled({key: tensor.shape for key, tensor in model.state_dict().items()}))
        model.save_pretrained(tmp_path / name)
        write_vocabulary(tmp_path / name)
        settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_models_are_run_sentence_by_sentence(folder: Path) -> None:
    scorer = RaTEScore(folder)
    report = "The heart is normal in size. No pleural effusion or pneumothorax. Small opacity seen."
    words, kinds = scorer.entities(report)
    found = []
    for sentence in report.split(". "):
        text = sentence if sentence.endswith(".") else f"{sentence}."
        batch = scorer.entity_tokeniser(text, return_tensors="pt")
        with torch.no_grad():
            labels = [LABELS[k] for k in scorer.entity_model(**batch).logits[0].argmax(dim=1).tolist()]
        pieces = scorer.entity_tokeniser.convert_ids_to_tokens(batch["input_ids"][0].tolist())
        joined = scorer.entity_tokeniser.convert_tokens_to_string
        found += [(joined(pieces[a : b + 1]), kind) for a, b, kind in entity_spans(labels)]
    assert list(zip(words, kinds, strict=True)) == found
    assert found
    scores = scorer.scores([report, "", report], [report, report, "Mild edema."])
    assert scores[0] == pytest.approx(1)
    assert scores[1] == 0.5
    assert scores[2] < 1


def test_other_models_are_refused(folder: Path) -> None:
    config = json.loads((folder / "entities" / "config.json").read_text())
    config["id2label"]["1"] = "B-ORGAN"
    (folder / "entities" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="B-ORGAN"):
        RaTEScore(folder)
    with pytest.raises(UserError, match="lacks a model"):
        RaTEScore(folder / "nowhere")
