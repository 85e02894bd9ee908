"""CheXbert: the fourteen findings of a report by a BERT, and how alike two reports are to it.

Guarantee: labels are those of the released labeler (Smit et al., EMNLP 2020; stanfordmlgroup/CheXbert): the text is
tidied as there, cut at 512 tokens, and each finding is the largest of its classes. The file is read without running
foreign code, and a key that is missing or left over is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from medvlp.errors import UserError
from medvlp.models.weights import check_keys, read_state
from medvlp.text.labeler import FINDINGS
from medvlp.types import ABSENT, NOT_MENTIONED, PRESENT, UNCERTAIN

if TYPE_CHECKING:
    from jaxtyping import Float

CHECKPOINT, VOCABULARY, CONFIG = "chexbert.pth", "vocab.txt", "config.json"
"""Files of a folder: the release, and the vocabulary (and, for another size than base, the configuration) of BERT."""
HEADS = (*FINDINGS[1:], FINDINGS[0])
"""Finding of each head: CheXbert has "No Finding" last."""
CLASSES = np.array([NOT_MENTIONED, PRESENT, ABSENT, UNCERTAIN])
"""Label of each class; the last head has the first two only."""
_TOKENS = 512
_AT_ONCE = 32


class _Labeler(nn.Module):
    """BERT with fourteen linear heads on the class token, named as in the release."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers import BertModel

        self.bert = BertModel(config)
        width = self.bert.config.hidden_size
        self.linear_heads = nn.ModuleList([nn.Linear(width, len(CLASSES)) for _ in HEADS[:-1]] + [nn.Linear(width, 2)])


class CheXbert:
    """The released labeler.

    Args:
        folder: Holds `chexbert.pth` and `vocab.txt` of bert-base-uncased.
        device: Torch device.

    Raises:
        UserError: A file is missing or cannot be read, or the weights are those of another model.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import BertConfig, BertTokenizer

        for name in (CHECKPOINT, VOCABULARY):
            if not (folder / name).is_file():
                fix = (
                    f"Put {CHECKPOINT} of CheXbert and {VOCABULARY} of bert-base-uncased there, or leave CheXbert out."
                )
                raise UserError(f"CheXbert has no {name}.", folder, fix)
        given = folder / CONFIG
        model = _Labeler(BertConfig.from_json_file(str(given)) if given.is_file() else BertConfig())
        state = {
            name.removeprefix("module."): tensor
            for name, tensor in read_state(folder / CHECKPOINT).items()
            if not name.endswith("embeddings.position_ids")
        }
        check_keys(model.state_dict(), state, folder / CHECKPOINT)
        model.load_state_dict(state)
        self.model, self.device = model.eval().to(device), device
        self.tokeniser = BertTokenizer(vocab=str(folder / VOCABULARY), do_lower_case=True)

    @torch.inference_mode()
    def embeddings(self, reports: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Return the class token of each report; the cosine of two is CheXbert's vector similarity (ReXrank)."""
        found = [np.zeros((0, self.model.bert.config.hidden_size), dtype=np.float32)]
        for start in range(0, len(reports), _AT_ONCE):
            batch = self.tokeniser(
                [" ".join(report.split()) for report in reports[start : start + _AT_ONCE]],
                truncation=True,
                max_length=_TOKENS,
                padding=True,
                return_tensors="pt",
            ).to(self.device)
            hidden = self.model.bert(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            found.append(hidden[:, 0].float().cpu().numpy())
        return np.concatenate(found)

    @torch.inference_mode()
    def labels(self, reports: Sequence[str]) -> Float[np.ndarray, "n 14"]:
        """Return 1, 0, -1 or NaN for each report and each of `FINDINGS`, in that order."""
        hidden = torch.from_numpy(self.embeddings(reports)).to(self.device)
        table = np.full((len(reports), len(FINDINGS)), np.nan)
        for finding, head in zip(HEADS, self.model.linear_heads, strict=True):
            table[:, FINDINGS.index(finding)] = CLASSES[head(hidden).argmax(dim=1).cpu().numpy()]
        return table


def cosine(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Return the cosine of each pair of rows."""
    product = np.einsum("nd,nd->n", a.astype(np.float64), b.astype(np.float64))
    return product / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
