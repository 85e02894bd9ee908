"""CheXbert from a checkpoint in the released format, against the heads computed apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from medvlp.errors import UserError
from medvlp.metrics.clinical.chexbert import CheXbert, cosine
from medvlp.text.labeler import FINDINGS
from tests.metrics.clinical.released import WORDS, write_chexbert

CONFIG = BertConfig(
    vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
)
OFFICIAL = [
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices", "No Finding",
]  # fmt: skip
REPORTS = ["The heart is normal in size.\n No  effusion", "", "mild edema " * 400, "small left effusions"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_chexbert(tmp_path, CONFIG)


def slow(folder: Path, report: str) -> tuple[np.ndarray, dict[str, float]]:
    """The class token of one report, and its labels, by plain transformers."""
    state = torch.load(folder / "chexbert.pth", weights_only=True)["model_state_dict"]
    bert = BertModel(CONFIG).eval()
    bert.load_state_dict({k.removeprefix("module.bert."): v for k, v in state.items() if ".bert." in k})
    words = report.lower().replace(".", " .").replace("effusions", "effusion ##s").split()
    ids = [WORDS.index(word) if word in WORDS else 1 for word in words]
    ids = [2, *ids, 3]
    if len(ids) > 512:
        ids = [*ids[:511], 3]
    with torch.no_grad():
        hidden = bert(torch.tensor([ids]))[0][0, 0]
    found = {}
    for head, name in enumerate(OFFICIAL):
        scores = state[f"module.linear_heads.{head}.weight"] @ hidden + state[f"module.linear_heads.{head}.bias"]
        found[name] = {0: np.nan, 1: 1.0, 2: 0.0, 3: -1.0}[int(scores.argmax())]
    return hidden.numpy(), found


def test_labels_and_vectors_equal_each_report_by_itself(folder: Path) -> None:
    model = CheXbert(folder)
    vectors, table = model.embeddings(REPORTS), model.labels(REPORTS)
    for row, report in enumerate(REPORTS):
        hidden, labels = slow(folder, report)
        np.testing.assert_allclose(vectors[row], hidden, atol=2e-6)
        np.testing.assert_array_equal(table[row], [labels[name] for name in FINDINGS])
    assert len({tuple(np.nan_to_num(row, nan=9)) for row in table}) > 1
    assert model.labels([]).shape == (0, 14)


def test_alike_reports_have_cosine_one(folder: Path) -> None:
    vectors = CheXbert(folder).embeddings(["no effusion", "No effusion", "lung clear"])
    found = cosine(vectors[[0, 0]], vectors[[1, 2]])
    assert found[0] == pytest.approx(1)
    assert found[1] < 0.999


def test_other_weights_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no chexbert\.pth"):
        CheXbert(folder / "nowhere")
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="do not fit"):
        CheXbert(folder)
    state = torch.load(folder / "chexbert.pth", weights_only=True)
    CONFIG.to_json_file(folder / "config.json")
    del state["model_state_dict"]["module.linear_heads.13.bias"]
    torch.save(state, folder / "chexbert.pth")
    with pytest.raises(UserError, match=r"missing \(1\): linear_heads\.13\.bias"):
        CheXbert(folder)
