"""Classification of images, binary or multi-label, by five protocols.

Guarantee: `linear_probe`, `knn` and `few_shot` see only features, computed once per encoder and store; `fine_tune`
trains a copy of the encoder; `zero_shot` sees no training label. Scores are probabilities, one logistic question per
label.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from medvlp.data.inputs import check_side
from medvlp.errors import UserError
from medvlp.tasks._probes import CHOICE, linear_probe, nearest_neighbours
from medvlp.tasks._samples import few_shot_subset, label_subset, select
from medvlp.tasks.base import SCORES, SPACE, ZERO_SHOT, Head, Samples, Subject, Task, encoder_of, rows_at_once

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import nn

    from medvlp.config.preprocessing import ModelInputConfig
    from medvlp.store.array_store import Store
    from medvlp.tasks._classifier import Classifier, ClassifierTuning
    from medvlp.types import Features, Predictions
    from medvlp.zoo import Encoder

ZERO_SHOT_BATCH = 256
PROBABILITY_DECIMALS = 12
"""Scores are rounded to this many decimals, so that the last bits of a linear-algebra library decide no tie."""


class Classification(Task):
    """Binary questions about an image, each with its own rule for positives and negatives."""

    code_version: ClassVar[int] = 2
    scoring: ClassVar[str] = "classification"
    protocols: ClassVar[frozenset[str]] = frozenset({"linear_probe", "knn", "few_shot", "fine_tune", ZERO_SHOT})
    needs: ClassVar[str] = SCORES

    @property
    def rule(self) -> str:
        """See `Task.rule`."""
        how = self.config.classification
        if how.video_scores:
            return "phases"
        return "benchx_classification" if how.legacy_scores else self.scoring

    @property
    def needed(self) -> str:
        """See `Task.needed`: some ways from prompts to an answer compare vectors."""
        how = self.config.zero_shot
        return SPACE if how.legacy_standardised or how.reduce == "best" else self.needs

    def samples(self, store: Store) -> dict[str, Samples]:
        """Return train, val and test samples with labels by the task's rules; see `Task.samples`."""
        return select(store, self.config)

    def training_subset(self, train: Samples, *, fraction: float, shots: int, draw: int) -> Samples:
        """Return a share, drawn or listed, or `shots` per class and label; see `_samples`."""
        return few_shot_subset(train, shots, draw) if shots else label_subset(train, fraction, draw, self.config)

    def settings(self, protocol: str) -> dict[str, Any]:
        """Return what of the task decides a protocol's numbers."""
        task = self.config.resolved()
        made = protocol == ZERO_SHOT and self.config.zero_shot.prompts != "pair"
        keys = {
            "linear_probe": ["linear_probe_c"],
            "few_shot": ["linear_probe_c"],
            "knn": ["knn_k"],
            "fine_tune": ["fine_tune", "classification", "tuning"],
            "zero_shot": ["zero_shot"],
        }[protocol]
        settings = {"code_version": self.code_version, "protocol": protocol} | {key: task[key] for key in keys}
        if protocol in ("linear_probe", "few_shot", "knn"):
            settings["choice"] = CHOICE
        # What prompts are made from lies outside of the task: the prompts themselves decide the numbers.
        return settings | ({"made_prompts": self._prompts()} if made else {})

    def fit(self, subject: Subject, protocol: str, train: Samples, val: Samples, seed: int) -> Head:
        """Fit a head by one of the protocols.

        Raises:
            UserError: No label has both classes among the training samples, or the protocol needs something that the
                subject or the task lacks (an encoder, a text side, prompts).
        """
        if protocol == ZERO_SHOT:
            return self._zero_shot(subject)
        both = (train.labels == 1).any(axis=0) & (train.labels == 0).any(axis=0)
        if not both.any():
            raise UserError(
                f"No label has both classes among the {len(train)} training samples.",
                f"task {self.config.name}, {protocol}",
                "Use a larger fraction or more shots.",
            )
        if protocol == "fine_tune":
            return self._fine_tune(subject, train, val, seed)
        return self._probe(subject, protocol, train, val)

    def network(self, tower: Any, dim: int, taken: ModelInputConfig) -> Classifier:
        """Return the tower with a linear head; see `Task.network`."""
        from medvlp.tasks._classifier import Classifier

        task = self.config
        check_side(taken, task.fine_tune.input_size)
        if task.fine_tune.input_size is not None:
            tower.set_input_size(task.fine_tune.input_size)
        return Classifier(tower, dim, len(task.labels), task.classification, task.fine_tune.freeze_encoder)

    def tunable(
        self, encoder: Encoder, store: Store, train: Samples, val: Samples, seed: int, num_workers: int = 1
    ) -> ClassifierTuning:
        """Return a classifier on a copy of the encoder's tower; see `Task.tunable`."""
        from medvlp.tasks._classifier import ClassifierTuning, F1ClassifierTuning

        kind = F1ClassifierTuning if self.config.classification.select == "f1" else ClassifierTuning
        network = self.network(copy.deepcopy(encoder.image_tower), encoder.dim, encoder.preprocessing.input)
        ready = network.to(encoder.device)
        return kind(ready, encoder, store, train, val, self.config, seed, num_workers)

    def kept(self, tunable: ClassifierTuning, network: nn.Module, samples: Samples) -> Predictions:
        """Return probabilities as the network gives them; see `Task.kept`."""
        from scipy.special import expit

        return samples.predictions(expit(tunable.logits(network, samples)))

    def _fine_tune(self, subject: Subject, train: Samples, val: Samples, seed: int) -> Head:
        """Fine-tune, by every setting of the task's grid where it has one; of equal ones the first is used.

        Raises:
            UserError: No setting came to its end: the numbers of each were not finite.
        """
        from medvlp.tasks._fine_tune import DivergedError

        encoder = encoder_of(subject, "fine_tune")
        if self.config.tuning is None:
            return self._tuned(encoder, subject, train, val, seed, subject.checkpoints)[1]
        best: tuple[float, Head] | None = None
        trials: list[dict[str, Any]] = []
        for number, setting in enumerate(self.config.tuning.settings):
            how = self.config.fine_tune.model_copy(update=setting)
            task = Classification(self.config.model_copy(update={"fine_tune": how, "tuning": None}))
            checkpoints = None if subject.checkpoints is None else subject.checkpoints / f"trial_{number}"
            try:
                value, head = task._tuned(encoder, subject, train, val, seed, checkpoints)
            except DivergedError as error:
                trials.append({"setting": setting, "score": None, "reason": error.what})
                continue
            trials.append({"setting": setting, "score": value} | head.best_params)
            if best is None or value > best[0]:
                best = value, head
        if best is None:
            raise UserError(
                f"None of the {len(trials)} settings of the grid came to finite numbers.",
                f"task {self.config.name}, tuning",
                "Name lower rates in `tuning.lr`.",
            )
        tried = {"trials": trials, "chosen": [one["score"] for one in trials].index(best[0])}
        return Head(best[1].predict, best[1].best_params | tried, best[1].maps)

    def _tuned(
        self, encoder: Encoder, subject: Subject, train: Samples, val: Samples, seed: int, checkpoints: Path | None
    ) -> tuple[float, Head]:
        """Fine-tune once; return the score on validation, and the head."""
        from medvlp.tasks._evidence import tuned_evidence
        from medvlp.tasks._fine_tune import fine_tuned, seeded

        with seeded(seed, str(encoder.device)):
            tunable = self.tunable(encoder, subject.store, train, val, seed)
            tuning, chosen = fine_tuned(tunable, self.config.fine_tune, seed, checkpoints)
        best = float(chosen[f"val_{tunable.criterion}"])

        network: Any = tuning.network

        def evidence(pixels: np.ndarray) -> np.ndarray:
            return tuned_evidence(network, pixels, tunable.input)

        predict = partial(self.kept, tunable, tuning.network)
        return best, Head(predict, chosen, _maps_of(subject.store, evidence))

    def _probe(self, subject: Subject, protocol: str, train: Samples, val: Samples) -> Head:
        features = subject.load_features()
        arguments = (
            list(train.label_names),
            np.asarray(features[train.rows]),
            train.labels,
            np.asarray(features[val.rows]),
            val.labels,
        )
        maps = None
        if protocol == "knn":
            scorer, best = nearest_neighbours(*arguments, self.config.knn_k)
        else:
            scorer, best = linear_probe(*arguments, self.config.linear_probe_c)
            directions = scorer.directions(features.shape[1])
            maps = None if subject.load_encoder is None else _probe_maps(subject, directions)

        def score(samples: Samples) -> np.ndarray:
            return np.round(scorer(np.asarray(features[samples.rows])), PROBABILITY_DECIMALS)

        return Head.of_scores(score, best, maps)

    def _prompts(self) -> tuple[list[list[str]], list[list[str]]]:
        """Return the prompts of each label and those against it.

        Raises:
            UserError: A label has none, or names no finding that prompts can be made of.
        """
        from medvlp.knowledge import zero_shot

        how, sides = self.config.zero_shot, ([], [])  # type: ignore[var-annotated]
        for label in self.config.labels:
            positive, negative = (list(label.prompts.get(side, ())) for side in ("positive", "negative"))
            if how.prompts in ("description", "generated"):
                finding = label.finding or zero_shot.finding_of(label.name)
                described = how.prompts == "description"
                positive = (
                    zero_shot.descriptions(finding)
                    if described
                    else zero_shot.generated(finding, how.per_class, how.seed)
                )
                negative = negative or [f"no {finding}"]
            elif not positive or not (negative or how.legacy_standardised):
                raise UserError(
                    f"The label '{label.name}' has no prompts.",
                    f"task {self.config.name}, labels",
                    "Give `prompts: {positive: [...], negative: [...]}`, or let them be made by `zero_shot.prompts`.",
                )
            elif how.prompts == "ensemble":
                positive, negative = zero_shot.ensemble(positive), zero_shot.ensemble(negative)
            for side, prompts in zip(sides, (positive, negative), strict=True):
                side.append(prompts)
        return sides

    def _zero_shot(self, subject: Subject) -> Head:
        positives, negatives = self._prompts()
        encoder = encoder_of(subject, ZERO_SHOT)
        store, how = subject.store, self.config.zero_shot

        def score(samples: Samples) -> np.ndarray:
            parts, step = [], rows_at_once(encoder, ZERO_SHOT_BATCH)
            for start in range(0, len(samples), step):
                features = encoder.encode_rows(store, samples.rows[start : start + step])
                if how.legacy_standardised:
                    parts.append(_most_similar(encoder, features, positives))
                else:
                    scores = encoder.zero_shot_features(features, positives, negatives, how.reduce)
                    parts.append(scores.double().cpu().numpy())
            found = np.concatenate(parts)
            return _standardised(found) if how.legacy_standardised else found

        def evidence(pixels: np.ndarray) -> np.ndarray:
            texts = [prompt for group in positives for prompt in group]
            found = encoder.token_heat_maps(pixels, texts).double().cpu().numpy()
            groups = np.split(found, np.cumsum([len(group) for group in positives])[:-1], axis=1)
            return np.stack([group.mean(axis=1) for group in groups], axis=1)

        return Head.of_scores(score, maps=None if encoder.heat_map_kind is None else _maps_of(store, evidence))


def _maps_of(store: Store, evidence: Callable[[np.ndarray], np.ndarray]) -> Callable[[Samples], np.ndarray] | None:
    """Return a function from samples to heat maps, from one of stored squares; None where the store has no squares."""
    if store.kind != "image":
        return None
    places = store.images["index"].to_numpy()
    return lambda samples: evidence(store.read(places[samples.rows]))


def _probe_maps(subject: Subject, directions: Float[np.ndarray, "k d"]) -> Callable[[Samples], np.ndarray] | None:
    from medvlp.tasks._evidence import probe_evidence

    # The encoder is loaded when maps are asked for: a probe needs its features alone.
    return _maps_of(
        subject.store, lambda pixels: probe_evidence(encoder_of(subject, "linear_probe"), pixels, directions)
    )


def _most_similar(encoder: Encoder, features: Features, prompts: list[list[str]]) -> Float[np.ndarray, "b k"]:
    """Return the cosine of each image with the most similar prompt of each label."""
    images = encoder.embed_features(features).double()
    columns = [(images @ encoder.embed_text(own).double().T).amax(dim=1) for own in prompts]
    return np.stack([column.cpu().numpy() for column in columns], axis=1)


def _standardised(values: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Return BenchX's logits, each label standardised over the images at hand, as probabilities; one image stays.

    A label on which all images are equal gets one half.
    """
    from scipy.special import expit

    if len(values) > 1:
        spread = values.std(axis=0)
        values = np.where(spread > 0, (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0), 0.0)
    return expit(values)
