"""RadGraph's model against annotations that the package radgraph made with the same tiny weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig

from medvlp.errors import UserError
from medvlp.metrics.clinical.radgraph import radgraph_counts, radgraph_f1
from medvlp.metrics.clinical.radgraph_model import RadGraph, split_report
from tests.metrics.clinical.released import WORDS, ruled, write_vocabulary

REFERENCE = json.loads(Path(__file__).with_name("radgraph_reference.json").read_text(encoding="utf-8"))
"""Reports, keys and configuration of a tiny DyGIE++, and what `radgraph.RadGraph` 0.1.18 found with it."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = dict(REFERENCE["config"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "vocabulary").mkdir()
    for name, labels in REFERENCE["vocabulary"].items():
        (tmp_path / "vocabulary" / name).write_text("\n".join(labels) + "\n")
    shapes = {name: torch.Size(shape) for name, shape in REFERENCE["keys"].items()}
    torch.save(ruled(shapes, REFERENCE["gains"]), tmp_path / "weights.th")
    write_vocabulary(tmp_path / "encoder")
    BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    ).save_pretrained(tmp_path / "encoder")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (tmp_path / "encoder" / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_annotations_equal_the_package(folder: Path) -> None:
    model = RadGraph(folder, "radgraph")
    found = model.annotations(REFERENCE["reports"])
    expected = [
        {"text": annotation["text"], "entities": annotation["entities"]} for annotation in REFERENCE["annotations"]
    ]
    assert found == expected
    assert any(entity["relations"] for entity in expected[0]["entities"].values())
    # more pieces than the encoder takes at once, so that a report goes through it in parts
    assert len(expected[0]["text"].split()) > model.longest - 2
    assert radgraph_f1(radgraph_counts(found, expected)).tolist() == [[1, 1, 1]] * len(found)


def test_an_empty_report_has_no_entities(folder: Path) -> None:
    assert RadGraph(folder, "radgraph").annotations([" \n"]) == [{"text": "", "entities": {}}]


@pytest.mark.parametrize(
    ("text", "radgraph", "xl"),
    [
        ("Clear. No effusion/edema", "Clear . No effusion / edema", "Clear . No effusion / edema"),
        ("50%, (new) 2.5-cm", "50% , ( new ) 2 . 5-cm", "50 % , ( new ) 2 . 5 - cm"),
        ("it's 5%. ok;so", "it's 5% . ok;so", "it ' s 5 % . ok ; so"),
    ],
)
def test_words_of_reports(text: str, radgraph: str, xl: str) -> None:
    assert " ".join(split_report(text, "radgraph")) == radgraph
    assert " ".join(split_report(text, "radgraph-xl")) == xl


def rewrite(file: Path, change: Any) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_other_models_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        RadGraph(folder / "nowhere")
    rewrite(folder / "config.json", lambda config: config["model"].update(max_span_width=4))
    with pytest.raises(UserError, match=r"other shapes \(1\): width\.weight"):
        RadGraph(folder)
    rewrite(folder / "config.json", lambda config: config["model"]["loss_weights"].update(coref=1.0))
    with pytest.raises(UserError, match="coreference or events"):
        RadGraph(folder)
    rewrite(folder / "config.json", lambda config: config["model"]["loss_weights"].update(coref=0.0))
    (folder / "vocabulary" / "other__ner_labels.txt").write_text("\nx\n")
    with pytest.raises(UserError, match="2 files of ner labels"):
        RadGraph(folder)
