"""Report generation: what does a study show, in words?

Guarantee: a sample is a study with its images; texts are learnt from training studies alone, and generated from images
alone. Kept are generated and reference text of each study; as in the store, no text names a patient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from medvlp.config.base import json_sha256
from medvlp.data.texts import report_text
from medvlp.errors import UserError
from medvlp.tasks._samples import by_split, fraction_subset
from medvlp.tasks._study_images import StudyImages
from medvlp.tasks.base import FROZEN, SPLITS, Head, Samples, Subject, Task
from medvlp.text.labeler import FINDINGS
from medvlp.text.report_words import tokeniser

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import torch
    from jaxtyping import Int
    from torch import nn

    from medvlp.config.preprocessing import ModelInputConfig
    from medvlp.config.reports import ReportsConfig
    from medvlp.models.report_decoder import ReportDecoder
    from medvlp.store.array_store import Store
    from medvlp.tasks._experts.prompts import Prompts
    from medvlp.tasks._report_writer import ReportTuning, ReportWriter
    from medvlp.text.vocabulary import ReportTokens
    from medvlp.zoo import Encoder


SCORED_WORDS = "simple"
"""Rule by which texts are scored, unless the task has R2Gen's."""
DECODER = "decoder"
"""Folder with the shape of a decoder that came from a Hugging Face folder."""


@dataclass(frozen=True)
class Reports:
    """Generated and reference texts, one row per study.

    Args:
        sample_ids: Study of each row.
        patient_ids: A number for the patient of each row.
        generated: What was written.
        references: What the report says.
        words: Rule by which both are split into words for scores; see `medvlp.text.report_words`.
    """

    sample_ids: Sequence[str]
    patient_ids: Sequence[str]
    generated: Sequence[str]
    references: Sequence[str]
    words: str

    @property
    def label_names(self) -> tuple[str, ...]:
        """The findings that texts are asked for."""
        return FINDINGS

    def to_frame(self) -> pd.DataFrame:
        """Return one row per study."""
        import pandas as pd

        columns = {
            "sample_id": list(self.sample_ids),
            "patient_id": list(self.patient_ids),
            "generated": list(self.generated),
            "reference": list(self.references),
        }
        return pd.DataFrame(columns, dtype=object).assign(words=self.words)

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> Reports:
        """Inverse of `to_frame`."""
        samples, patients, generated, references = (
            frame[name].tolist() for name in ("sample_id", "patient_id", "generated", "reference")
        )
        words = str(frame["words"].iloc[0]) if len(frame) else SCORED_WORDS
        return cls(samples, patients, generated, references, words)


def decoder_sha256(config: ReportsConfig) -> str | None:
    """Return the hash of the content of a decoder's folder; None where there is none."""
    from medvlp.store.files import file_sha256

    folder = config.decoder.folder
    if folder is None or not folder.is_dir():
        return None
    return json_sha256({path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.is_file()})


class ReportGeneration(Task):
    """A report for each study: by a trained decoder, or that of the nearest training study."""

    code_version: ClassVar[int] = 3
    scoring: ClassVar[str] = "report_generation"
    protocols: ClassVar[frozenset[str]] = frozenset({"knn", FROZEN, "fine_tune"})
    needs: ClassVar[str] = ""

    def samples(self, store: Store) -> dict[str, Samples]:
        """Return the studies with an image of the task's views and a report with words in its sections.

        Raises:
            UserError: A split has none, or the folder of the decoder is missing.
        """
        self._check_folder()
        frame = store.samples()
        first = store.images["image_id"].to_numpy()[StudyImages(store, self.config.views, 1).first]
        frame = frame[frame["image_id"].isin(set(first))]
        texts = [self._text(report) for report in frame["report"]]
        labels = np.array([[1.0 if any(map(str.isalnum, text)) else np.nan] for text in texts]).reshape(-1, 1)
        found = by_split(store, frame, self.config, ["report"], labels)
        for split in SPLITS:
            if not len(found[split]):
                what = (
                    f"{len(frame)} studies with images" if len(frame) else "no study with an image of the task's views"
                )
                raise UserError(
                    f"The split '{split}' has no report with the sections {' or '.join(self.config.reports.sections)}; "
                    f"the store has {what}.",
                    f"task {self.config.name}, data set {self.config.dataset}",
                    "Use a store with reports; check `reports.sections` and `views` of the task, and the splits.",
                )
        studies = store.images["study_id"].astype(str).to_numpy()
        return {split: replace(own, sample_ids=studies[own.rows].tolist()) for split, own in found.items()}

    def _text(self, report: str | None) -> str:
        return " ".join(report_text(report, self.config.reports.sections).split())

    def _check_folder(self) -> None:
        folder = self.config.reports.decoder.folder
        if folder is not None and not (folder / "config.json").is_file():
            raise UserError(
                "The folder of the decoder has no config.json.",
                folder,
                "Give a local Hugging Face folder of a decoder.",
            )

    def training_subset(self, train: Samples, *, fraction: float, shots: int, draw: int) -> Samples:
        """Return a share of the studies."""
        return fraction_subset(train, fraction, draw)

    def settings(self, protocol: str) -> dict[str, Any]:
        """Return what of the task decides a protocol's numbers; of a decoder's folder the hash of its content."""
        task = self.config.resolved()
        settings = {"code_version": self.code_version, "protocol": protocol, "reports": task["reports"]}
        if protocol == "knn":
            return settings
        if self.config.reports.experts is not None:
            settings["experts"] = self._expert_hashes
        return settings | {"fine_tune": task["fine_tune"], "folder": self._folder_hash}

    @cached_property
    def _expert_hashes(self) -> list[str]:
        import torch

        from medvlp.tasks._experts.prompts import build_experts

        return [expert.hash for expert in build_experts(self.config.reports.experts, torch.device("cpu"))]

    @cached_property
    def _folder_hash(self) -> str | None:
        return decoder_sha256(self.config.reports)

    def fit(self, subject: Subject, protocol: str, train: Samples, val: Samples, seed: int) -> Head:
        """Train a decoder, or look for the nearest training study; a subject without features gets the usual report.

        Raises:
            UserError: The training reports have too few words, the decoder's folder cannot be used, or the loss is not
                finite.
        """
        if protocol == "knn":
            return self._nearest(subject, train)
        tunable, head = self._trained(subject, protocol, train, val, seed)
        tokens = tunable.network.tokens
        return replace(head, best_params=head.best_params | {"tokens": tokens.size, "tokens_hash": tokens.hash})

    def kept(self, tunable: ReportTuning, network: nn.Module, samples: Samples) -> Reports:
        """Return generated reports beside the references; see `Task.kept`."""
        said = self._references(tunable.store, tunable.network.tokens)
        return self._kept(samples, tunable.texts(network, samples), said)

    def save_parts(self, network: Any, folder: Path) -> None:
        """Write the decoder's words, or the tokenizer and shape of a decoder that came from a folder."""
        network.tokens.save(folder)
        if self.config.reports.decoder.folder is not None:
            network.decoder.model.config.save_pretrained(folder / DECODER)

    def rebuilt(self, tower: Any, dim: int, taken: ModelInputConfig, parts: Path) -> ReportWriter:
        """Return a writer for weights that were saved; see `Task.rebuilt`."""
        from medvlp.models.causal_decoder import CausalDecoder, shaped_model
        from medvlp.tasks._report_writer import ReportWriter, token_shape
        from medvlp.text.vocabulary import load_tokens

        tokens = load_tokens(parts, tokeniser(self.config.reports.words))
        if self.config.fine_tune.input_size is not None:
            tower.set_input_size(self.config.fine_tune.input_size)
        count, width = token_shape(tower, taken)
        decoder: ReportDecoder
        if (parts / DECODER).is_dir():
            decoder = CausalDecoder(width, shaped_model(parts / DECODER), tokens)
        else:
            decoder = self._decoder(width, count, tokens)
        return ReportWriter(tower, decoder, tokens, self.config.fine_tune.freeze_encoder)

    def images(self, store: Store, samples: Samples) -> Int[np.ndarray, " m"]:
        """Return the rows of all images that are shown of the studies."""
        shown = StudyImages(store, self.config.views, self.config.reports.max_images).of(samples.rows)
        return shown[shown >= 0]

    def tunable(
        self, encoder: Encoder, store: Store, train: Samples, val: Samples, seed: int, num_workers: int = 1
    ) -> ReportTuning:
        """Return a decoder on a copy of the encoder's tower, for the words of the training reports."""
        from medvlp.tasks._report_writer import (
            LikelihoodReportTuning,
            ReportTuning,
            ReportWriter,
            model_input,
            sized_tower,
            token_shape,
        )

        told, prompts = self._references(store), self._prompts(store, encoder.device)
        tokens = self._tokens([*told(train.rows), *(prompts(train.rows) if prompts else ())])
        taken = model_input(self.config, encoder.preprocessing.input)
        tower = sized_tower(encoder, self.config.fine_tune.input_size)
        count, width = token_shape(tower, taken)
        decoder = self._decoder(width, count, tokens)
        network = ReportWriter(tower, decoder, tokens, self.config.fine_tune.freeze_encoder)
        kind = ReportTuning if self.config.reports.select == "bleu_4" else LikelihoodReportTuning
        network.to(encoder.device)
        return kind(network, encoder, store, told, train, val, self.config, seed, num_workers, prompts)

    def _prompts(self, store: Store, device: torch.device) -> Prompts | None:
        """Return what experts say of the studies of a store; None without experts."""
        from medvlp.tasks._experts.prompts import Prompts, build_experts

        experts = build_experts(self.config.reports.experts, device)
        images = StudyImages(store, self.config.views, self.config.reports.max_images)
        return Prompts(experts, store, images) if experts else None

    def _references(
        self, store: Store, tokens: ReportTokens | None = None
    ) -> Callable[[Int[np.ndarray, " b"]], list[str]]:
        """Return a function from the first images of studies to their texts; with tokens, as these are scored."""
        studies = store.images["study_id"].astype(str).to_numpy()
        reports = store.studies.set_index(store.studies["study_id"].astype(str))["report"]
        config = self.config.reports

        def texts(rows: Int[np.ndarray, " b"]) -> list[str]:
            found = [self._text(reports[study]) for study in studies[rows]]
            if tokens is None or not config.legacy_references:
                return found
            return [tokens.decode(ids[1:]) for ids in tokens.encode(found, config.max_tokens)[0]]

        return texts

    def _tokens(self, texts: Sequence[str]) -> ReportTokens:
        from medvlp.text.vocabulary import FolderTokens, WordVocabulary

        config = self.config.reports
        if config.decoder.folder is not None:
            return FolderTokens(config.decoder.folder)
        return WordVocabulary.build(texts, config.min_count, tokeniser(config.words))

    def _decoder(self, width: int, image_tokens: int, tokens: ReportTokens) -> ReportDecoder:
        """Return a decoder for visual tokens of a width, of which one image has so many."""
        from medvlp.models.causal_decoder import CausalDecoder, check_places, folder_model, fresh_model
        from medvlp.models.memory_decoder import MemoryDecoder

        config, how = self.config.reports, self.config.reports.decoder
        if how.kind == "memory":
            sizes = how.model_dump(include={"hidden", "layers", "heads", "slots", "memory_heads", "dropout"})
            return MemoryDecoder(width, tokens.size, how.width, **sizes, visual_dropout=how.visual_dropout)
        places = image_tokens * config.max_images + config.max_tokens
        places += 0 if config.experts is None else config.experts.max_tokens
        if how.folder is None:
            sizes = how.model_dump(include={"width", "hidden", "layers", "heads", "dropout"})
            model = fresh_model(tokens.size, **sizes, max_places=places)
        else:
            model = folder_model(how.folder)
            check_places(model, tokens.size, places, how.folder)
        return CausalDecoder(width, model, tokens)

    def _kept(
        self, samples: Samples, generated: Sequence[str], references: Callable[[Int[np.ndarray, " b"]], list[str]]
    ) -> Reports:
        words = "r2gen" if self.config.reports.words == "r2gen" else SCORED_WORDS
        return Reports(samples.sample_ids, samples.patient_ids, generated, references(samples.rows), words)

    def _nearest(self, subject: Subject, train: Samples) -> Head:
        """Return the report of the training study whose features are nearest, each scaled by the training studies.

        Features of a study are the mean over its images. Without any feature it is the most frequent training report.
        """
        images = StudyImages(subject.store, self.config.views, self.config.reports.max_images)
        features = np.asarray(subject.load_features(), dtype=np.float64)

        def of(samples: Samples) -> np.ndarray:
            shown = images.of(samples.rows)
            return np.stack([features[rows[rows >= 0]].mean(axis=0) for rows in shown])

        told = self._references(subject.store)
        texts, known = told(train.rows), of(train)
        if self.config.reports.legacy_references:
            told = self._references(subject.store, self._tokens(texts))
        centre, scale = known.mean(axis=0), known.std(axis=0)
        scale[scale == 0] = 1.0
        usual = Counter(texts).most_common(1)[0][0]

        def predict(samples: Samples) -> Reports:
            if not known.shape[1]:
                return self._kept(samples, [usual] * len(samples), told)
            asked = [(row - centre) / scale for row in of(samples)] if len(samples) else []
            places = [int(((known_scaled - row) ** 2).sum(axis=1).argmin()) for row in asked]
            return self._kept(samples, [texts[place] for place in places], told)

        known_scaled = (known - centre) / scale
        return Head(predict, {"studies": len(train)})
