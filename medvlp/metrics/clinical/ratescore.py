"""RaTEScore: entities of a generated report against the most similar ones of the reference, weighed by their kinds.

Guarantee: on the same sentences equal to the package RaTEScore (Zhao et al., EMNLP 2024) with the same two models. That
package splits reports into sentences by medspaCy; here medvlp's rule does, unless another is given: a value is
comparable with published ones only with theirs. A report without entities scores 0.5 against any other, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from medvlp.errors import UserError
from medvlp.models.text_families import check_hub_loading
from medvlp.text.sections import split_sentences

if TYPE_CHECKING:
    from jaxtyping import Float

KINDS = ("ABNORMALITY", "ANATOMY", "DISEASE", "NON-ABNORMALITY", "NON-DISEASE")
WITHOUT_ENTITIES = 0.5
_STATED = {"ABNORMALITY": True, "DISEASE": True, "NON-ABNORMALITY": False, "NON-DISEASE": False}
"""Whether a kind says that something is there; anatomy says neither."""


class Affinity(NamedTuple):
    """Weight of each pair of kinds, rows for the entity that looks for a partner, and what a contradiction is worth."""

    weights: Float[np.ndarray, "5 5"]
    contradiction: float


AFFINITIES: Mapping[str, Affinity] = {
    "long": Affinity(
        np.array(
            [
                [
                    0.4276119164393705,
                    0.6240929990607657,
                    0.0034478181112993847,
                    0.5431049700217344,
                    0.27005425386213877,
                ],
                [
                    0.7487824274337533,
                    0.2856134859160784,
                    0.4592143222158069,
                    0.02097055139911715,
                    0.00013736314126696204,
                ],
                [0.8396510075734789, 0.9950209388542061, 0.8460555030578727, 0.9820689020512646, 0.3789136708096537],
                [
                    0.16546764653692908,
                    0.018670610691852826,
                    0.719397354576018,
                    0.0009357166071730684,
                    0.0927333564267591,
                ],
                [0.7759420231214385, 0.1839139293714062, 0.10073046076318157, 0.03860183811876373, 0.34065681486566446],
            ]
        ),
        0.8716553966489615,
    ),
    "short": Affinity(
        np.array(
            [
                [0.4070293318365468, 0.6952639610605605, 0.28342529466226446, 0.9479148658006686, 0.23875064111146294],
                [0.5829759950441763, 0.7709590751917746, 0.0006059634829551632, 0.794672584951181, 0.27982942400798977],
                [0.8840397619834857, 0.9637659445696822, 0.19018958438059513, 0.6962283914800402, 0.943727057946997],
                [
                    0.1712744286898638,
                    0.4485149671497294,
                    0.00045065329822896076,
                    0.0007887930317199857,
                    0.8555432840895761,
                ],
                [0.9555801066212176, 0.13122106162635216, 0.6072996585919443, 0.05650711141169969, 0.3214769399791204],
            ]
        ),
        0.3611577852354489,
    ),
}
"""The two tables that the authors fitted, for reports and for sentences."""


def rate_score(
    generated: Float[np.ndarray, "a d"],
    reference: Float[np.ndarray, "b d"],
    generated_kinds: Sequence[str],
    reference_kinds: Sequence[str],
    affinity: Affinity,
) -> float:
    """Return RaTEScore from the vectors and kinds of the entities of two reports."""
    if not len(generated) or not len(reference):
        return WITHOUT_ENTITIES
    own, other = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (generated, reference))
    similarity = own @ other.T
    one = _directed(similarity.T, reference_kinds, generated_kinds, affinity)
    two = _directed(similarity, generated_kinds, reference_kinds, affinity)
    return 2 * one * two / (one + two) if one + two != 0 else 0.0


def _directed(
    similarity: Float[np.ndarray, "a b"], kinds: Sequence[str], others: Sequence[str], affinity: Affinity
) -> float:
    """Return the weighted mean similarity of each entity with its most similar partner."""
    best = similarity.argmax(axis=1)
    partner = [others[place] for place in best]
    weights = np.array([affinity.weights[KINDS.index(a), KINDS.index(b)] for a, b in zip(kinds, partner, strict=True)])
    against = [a in _STATED and b in _STATED and _STATED[a] != _STATED[b] for a, b in zip(kinds, partner, strict=True)]
    value = similarity[np.arange(len(best)), best] * np.where(against, affinity.contradiction, 1.0)
    return float((value * weights).sum() / weights.sum()) if weights.sum() else 0.0


def entity_spans(labels: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return first place, last place and kind of the entities in the labels of a sentence's pieces.

    The first and last label are those of the special pieces. An entity begins with B- and goes on through I- of any
    kind; pieces of I- without such a beginning are none. An entity that the closing special piece seems to continue
    ends before it; it is dropped where the one before it touches its own successor, as in the package.
    """
    found: list[tuple[int, int, str]] = []
    start, touching = None, False
    for place in range(1, len(labels) - 1):
        if labels[place].startswith("B-"):
            start = place
        following = labels[place + 1]
        if labels[place] == "O" or following.startswith("I-"):
            continue
        if start is not None:
            found.append((start, place, labels[start][2:]))
        start, touching = None, following.startswith("B-")
    if start is not None and not touching:
        found.append((start, len(labels) - 2, labels[start][2:]))
    return found


class RaTEScore:
    """The two models and the rule.

    Args:
        folder: Holds `entities` (RaTE-NER-Deberta) and `synonyms` (BioLORD-2023-C) as Hugging Face folders.
        affinity: One of `AFFINITIES`.
        sentences: Splits a report.
        device: Torch device.

    Raises:
        UserError: A folder is missing or its weights do not fit, or the entities are of other kinds.
    """

    def __init__(
        self,
        folder: Path,
        affinity: str = "long",
        sentences: Callable[[str], list[str]] = split_sentences,
        device: str = "cpu",
    ) -> None:
        from transformers import AutoModel, AutoModelForTokenClassification

        self.entity_tokeniser, self.entity_model = _local(folder / "entities", AutoModelForTokenClassification, device)
        self.synonym_tokeniser, self.synonym_model = _local(folder / "synonyms", AutoModel, device)
        self.affinity, self.sentences, self.device = AFFINITIES[affinity], sentences, device
        labels = set(self.entity_model.config.id2label.values())
        if expected := labels ^ {"O", *(f"{part}-{kind}" for part in "BI" for kind in KINDS)}:
            fix = "Give the released RaTE-NER-Deberta."
            raise UserError(
                f"The model has other labels than RaTEScore's: {sorted(expected)}.", folder / "entities", fix
            )

    def scores(self, generated: Sequence[str], reference: Sequence[str]) -> Float[np.ndarray, " n"]:
        """Return RaTEScore of each pair; that of a set is the mean."""
        values = []
        for own, other in zip(generated, reference, strict=True):
            (own_words, own_kinds), (words, kinds) = self.entities(own), self.entities(other)
            vectors = self._vectors(own_words), self._vectors(words)
            values.append(rate_score(*vectors, own_kinds, kinds, self.affinity))
        return np.array(values)

    @torch.inference_mode()
    def entities(self, report: str) -> tuple[list[str], list[str]]:
        """Return words and kind of each entity of a report."""
        words: list[str] = []
        kinds: list[str] = []
        for sentence in self.sentences(report):
            if len(sentence.strip()) < 3:
                continue
            batch = self.entity_tokeniser(sentence.strip(), truncation=True, max_length=512, return_tensors="pt")
            places = self.entity_model(**batch.to(self.device)).logits[0].argmax(dim=1).tolist()
            pieces = self.entity_tokeniser.convert_ids_to_tokens(batch["input_ids"][0])
            for first, last, kind in entity_spans([self.entity_model.config.id2label[place] for place in places]):
                words.append(self.entity_tokeniser.convert_tokens_to_string(pieces[first : last + 1]))
                kinds.append(kind)
        return words, kinds

    @torch.inference_mode()
    def _vectors(self, words: Sequence[str]) -> Float[np.ndarray, "n d"]:
        if not words:
            return np.zeros((0, self.synonym_model.config.hidden_size))
        batch = self.synonym_tokeniser(list(words), truncation=True, padding=True, max_length=30, return_tensors="pt")
        hidden = self.synonym_model(**batch.to(self.device)).last_hidden_state[:, 0]
        return hidden.double().cpu().numpy()


def _local(folder: Path, loader: Any, device: str) -> tuple[Any, Any]:
    """Return tokenizer and model of a local Hugging Face folder, every key of its weights accounted for."""
    from transformers import AutoTokenizer

    if not (folder / "config.json").is_file():
        raise UserError(
            "RaTEScore lacks a model.", folder, "Put the Hugging Face folder there, or leave RaTEScore out."
        )
    try:
        model, info = loader.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32, weights_only=True
        )
        tokeniser = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        fix = "It needs config.json, weights and tokenizer files of a transformers model."
        raise UserError(f"The model cannot be loaded: {str(error).splitlines()[0]}", folder, fix) from error
    check_hub_loading(info, folder, ("pooler.", "embeddings.position_ids"))
    return tokeniser, model.eval().to(device)
