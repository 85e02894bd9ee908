"""The released RadGraph models, which mark entities and relations of a report.

Guarantee: the annotations equal those of the package radgraph (DyGIE++ without coreference and events), from the same
files: `config.json`, `vocabulary/` and `weights.th` of `radgraph.tar.gz`, `radgraph-xl.tar.gz` or
`modern-radgraph-xl.tar.gz`, unpacked, with the configuration and tokenizer of their BERT below `encoder/`. The weights
are read without running foreign code, and a key that is missing or left over is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from medvlp.errors import UserError
from medvlp.metrics.clinical.radgraph import Annotation
from medvlp.models.weights import check_keys, read_state

if TYPE_CHECKING:
    from jaxtyping import Float

Spelling = Literal["radgraph", "radgraph-xl"]
_PARTS = ("config.json", "weights.th", "vocabulary", "encoder")
_UNUSED = ("_coref.", "_events.")
"""Parts of the file that the models do not use."""
_NAMES = (
    ("_embedder.token_embedder_bert._matched_embedder.transformer_model.", "encoder."),
    ("_endpoint_span_extractor._span_width_embedding.", "width."),
    ("_ner._ner_scorers.{}.0._module._linear_layers.", "entity_hidden."),
    ("_ner._ner_scorers.{}.1._module.", "entity_score."),
    ("_relation._mention_pruners.{}._scorer.0._module._linear_layers.", "mention_hidden."),
    ("_relation._mention_pruners.{}._scorer.1._module.", "mention_score."),
    ("_relation._relation_feedforwards.{}._linear_layers.", "relation_hidden."),
    ("_relation._relation_scorers.{}.", "relation_score."),
)
"""Beginnings of the released keys and of ours; `{}` is a data set and the kind of its labels."""
_MARKS = re.compile(r"([/,:.!?()])")
_XL_REPLACED = (*(("\\n", "  "), ("\\f", "  "), ("\\u2122", "      "), ("\n", " "), ('\\"', "``")),)
_XL_PARTED = ((").", ") ."), ("%.", "% ."), (".'", ". '"), ("%,", "% ,"), ("%)", "% )"))


def split_report(text: str, spelling: Spelling) -> list[str]:
    """Return the words of a report as the models were trained on them; those of "None" where there are none."""
    if spelling == "radgraph":
        words = _MARKS.sub(r" \1 ", text).split()
    else:
        for old, new in _XL_REPLACED:
            text = text.replace(old, new)
        text = " ".join(re.findall(r"\w+|[^\w\s]+", text))
        for old, new in _XL_PARTED:
            text = text.replace(old, new)
        words = text.split()
    return words or ["None"]


class _Layers(nn.ModuleList):
    """Linear layers with ReLU after each."""

    def __init__(self, width: int, hidden: Sequence[int]) -> None:
        super().__init__(nn.Linear(a, b) for a, b in zip([width, *hidden[:-1]], hidden, strict=True))

    def forward(self, x: Float[torch.Tensor, "*n d"]) -> Float[torch.Tensor, "*n h"]:
        for layer in self:
            x = layer(x).relu()
        return x


class _Network(nn.Module):
    """Scores spans of words as entities, and pairs of the best ones as relations."""

    encoder: Any

    def __init__(self, encoder: Any, config: dict[str, Any], entity_labels: int, relation_labels: int) -> None:
        super().__init__()
        model = config["model"]
        forward = model["feedforward_params"]
        hidden = forward["hidden_dims"]
        hidden = [hidden] * forward["num_layers"] if isinstance(hidden, int) else list(hidden)
        span = 2 * encoder.config.hidden_size + model["feature_size"]
        self.longest = int(model["max_span_width"])
        self.spans_per_word = float(model["modules"]["relation"]["spans_per_word"])
        self.encoder = encoder
        self.width = nn.Embedding(self.longest, model["feature_size"])
        self.entity_hidden, self.entity_score = _Layers(span, hidden), nn.Linear(hidden[-1], entity_labels)
        self.mention_hidden, self.mention_score = _Layers(span, hidden), nn.Linear(hidden[-1], 1)
        self.relation_hidden = _Layers(3 * span, hidden)
        self.relation_score = nn.Linear(hidden[-1], relation_labels)

    def forward(
        self, words: Float[torch.Tensor, "w d"]
    ) -> tuple[list[tuple[int, int, int]], list[tuple[tuple[int, int], tuple[int, int], int]]]:
        """Return entities (first word, last word, label) and relations (span, span, label) of one report."""
        count = len(words)
        spans = [(a, b) for a in range(count) for b in range(a, min(a + self.longest, count))]
        first, last = torch.tensor(spans, device=words.device).T
        embedded = torch.cat([words[first], words[last], self.width(last - first)], dim=-1)
        labels = _with_nothing(self.entity_score(self.entity_hidden(embedded))).argmax(dim=-1).tolist()
        entities = [(*span, label - 1) for span, label in zip(spans, labels, strict=True) if label]
        mentions = self.mention_score(self.mention_hidden(embedded))
        kept = int((torch.tensor(float(count)) * self.spans_per_word).ceil())  # in single precision, as in training
        best = mentions[:, 0].topk(kept).indices.sort().values
        one, other = embedded[best][:, None].expand(-1, kept, -1), embedded[best].expand(kept, -1, -1)
        pairs = self.relation_score(self.relation_hidden(torch.cat([one, other, one * other], dim=-1)))
        pairs = pairs + (mentions[best][:, None] + mentions[best][None])
        found = _with_nothing(pairs).argmax(dim=-1)
        chosen = [spans[place] for place in best.tolist()]
        relations = [(chosen[i], chosen[j], int(found[i, j]) - 1) for i, j in found.nonzero().tolist()]
        return entities, relations


def _with_nothing(scores: Float[torch.Tensor, "*n k"]) -> Float[torch.Tensor, "*n k+1"]:
    """Add the score of no label, which is 0, in front."""
    return torch.cat([torch.zeros_like(scores[..., :1]), scores], dim=-1)


class RadGraph:
    """A released model.

    Args:
        folder: See above.
        spelling: How the model wants words: "radgraph", or "radgraph-xl" for both others.
        device: Torch device.

    Raises:
        UserError: A part is missing or cannot be read, the model uses coreference or events, or the weights are those
            of another one.
    """

    def __init__(self, folder: Path, spelling: Spelling = "radgraph-xl", device: str = "cpu") -> None:
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        for part in _PARTS:
            if not (folder / part).exists():
                fix = "Unpack the released archive there, and add configuration and tokenizer of its BERT as encoder/."
                raise UserError(f"RadGraph has no {part}.", folder, fix)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        _check_tasks(config, folder)
        self.entity_labels, self.relation_labels = _labels(folder, "ner"), _labels(folder, "relation")
        encoder = AutoModel.from_config(AutoConfig.from_pretrained(str(folder / "encoder"), local_files_only=True))
        network = _Network(encoder, config, len(self.entity_labels), len(self.relation_labels))
        state = _renamed(read_state(folder / "weights.th"), folder)
        check_keys(network.state_dict(), state, folder / "weights.th")
        network.load_state_dict(state)
        self.network, self.device, self.spelling = network.eval().to(device), device, spelling
        self.tokeniser = AutoTokenizer.from_pretrained(str(folder / "encoder"), local_files_only=True)
        self.longest = int(config["dataset_reader"]["token_indexers"]["bert"].get("max_length") or 512)

    @torch.inference_mode()
    def annotations(self, reports: Sequence[str]) -> list[Annotation]:
        """Return the entities and relations of each report; none for an empty one."""
        return [self._annotation(report) if report.strip() else {"text": "", "entities": {}} for report in reports]

    def _annotation(self, report: str) -> Annotation:
        words = split_report(report, self.spelling)
        entities, relations = self.network(self._embedded(words))
        number = {
            span: str(place) for place, (*span_, _) in reversed(list(enumerate(entities, 1))) for span in [tuple(span_)]
        }
        found: dict[str, Any] = {}
        for place, (first, last, label) in enumerate(entities, 1):
            found[str(place)] = {
                "tokens": " ".join(words[first : last + 1]),
                "label": self.entity_labels[label],
                "start_ix": first,
                "end_ix": last,
                "relations": [
                    [self.relation_labels[kind], number[other]]
                    for one, other, kind in relations
                    if one == (first, last) and other in number
                ],
            }
        return {"text": " ".join(words), "entities": found}

    def _embedded(self, words: Sequence[str]) -> Float[torch.Tensor, "w d"]:
        """Return the mean of the pieces of each word; reports too long for the encoder go through it in parts."""
        pieces = [self.tokeniser.encode(word, add_special_tokens=False) for word in words]
        flat = [piece for word in pieces for piece in word]
        start, end = self.tokeniser.cls_token_id, self.tokeniser.sep_token_id
        step = self.longest - 2
        hidden = []
        for at in range(0, len(flat), step):
            ids = torch.tensor([[start, *flat[at : at + step], end]], device=self.device)
            hidden.append(self.network.encoder(input_ids=ids, attention_mask=torch.ones_like(ids))[0][0, 1:-1])
        every = torch.cat(hidden) if hidden else torch.zeros(0, self.network.encoder.config.hidden_size)
        parts = every.split([len(word) for word in pieces])
        return torch.stack([part.mean(dim=0) if len(part) else part.new_zeros(part.shape[1]) for part in parts])


def _check_tasks(config: dict[str, Any], folder: Path) -> None:
    weights = config["model"]["loss_weights"]
    propagation = config["model"]["modules"]["coref"].get("coref_prop", 0)
    if weights.get("coref", 0) or weights.get("events", 0) or propagation:
        fix = "Use radgraph, radgraph-xl or modern-radgraph-xl as released."
        raise UserError("The model uses coreference or events, which are not read here.", folder / "config.json", fix)


def _labels(folder: Path, kind: str) -> list[str]:
    """Return the labels of a kind in the model's order, without that of no entity.

    Raises:
        UserError: There is no file of them, or several.
    """
    files = sorted((folder / "vocabulary").glob(f"*__{kind}_labels.txt"))
    if len(files) != 1:
        fix = "Keep the vocabulary of the released archive; models of several data sets are not read."
        raise UserError(f"There are {len(files)} files of {kind} labels instead of one.", folder / "vocabulary", fix)
    return [label for label in files[0].read_text(encoding="utf-8").split("\n") if label]


def _renamed(state: dict[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights under the names of `_Network`."""
    datasets = {file.name.split("__")[0] for file in (folder / "vocabulary").glob("*__*_labels.txt")}
    names = {}
    for released, own in _NAMES:
        kind = "ner_labels" if released.startswith("_ner") else "relation_labels"
        for dataset in datasets:
            names[released.format(f"{dataset}__{kind}")] = own
    found = {}
    for name, tensor in state.items():
        if name.startswith(_UNUSED) or name.endswith("embeddings.position_ids"):
            continue
        start = next((start for start in names if name.startswith(start)), "")
        found[names.get(start, "") + name.removeprefix(start)] = tensor
    return found
