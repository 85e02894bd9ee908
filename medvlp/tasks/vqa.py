"""Visual question answering: a question about an image, answered by one of the answers that training has seen.

Guarantee: a sample is a question. Closed questions choose among the closed answers of the training questions, open ones
among the open answers; which a question is belongs to the question, as in published numbers. An answer that training
has never seen cannot be given: it counts as wrong, and the share of such questions is a score of its own. Answers and
wordings are learnt from the training questions of the cell alone.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from medvlp.errors import UserError
from medvlp.tasks._questions import questions_of
from medvlp.tasks._samples import by_split, fraction_subset
from medvlp.tasks.base import FROZEN, SPLITS, Head, Samples, Subject, Task

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from jaxtyping import Float, Int
    from torch import nn

    from medvlp.config.preprocessing import ModelInputConfig
    from medvlp.store.array_store import Store
    from medvlp.tasks._answerer import Answerer, AnswererTuning
    from medvlp.zoo import Encoder

ANSWERS = "answers.json"
"""Where a model keeps the answers and wordings that it has learnt."""
TEMPERATURE = 0.07
"""Of the neighbours' weights, as in the nearest neighbours of a classification."""


@dataclass(frozen=True)
class Questions:
    """Questions with their answers, in the order of some samples.

    Args:
        texts: The questions.
        answers: Normalised answers.
        closed: Whether each is closed.
        kinds: What is asked.
    """

    texts: Sequence[str]
    answers: Sequence[str]
    closed: Sequence[bool]
    kinds: Sequence[str]


@dataclass(frozen=True)
class Learnt:
    """What the training questions teach of answers alone.

    Args:
        closed: Answers of closed questions, sorted.
        open: Answers of open questions, sorted.
        usual: (closed, kind) -> the most frequent answer, the first in the alphabet of equally frequent ones.
        wordings: Wording, by its words in order -> whether the questions of this wording are closed, each once.
    """

    closed: tuple[str, ...]
    open: tuple[str, ...]
    usual: dict[tuple[bool, str], str]
    wordings: dict[str, tuple[bool, ...]]

    @classmethod
    def of(cls, questions: Questions) -> Learnt:
        """Read training questions."""
        counts: dict[tuple[bool, str], Counter[str]] = defaultdict(Counter)
        answers: dict[bool, set[str]] = {True: set(), False: set()}
        for answer, closed, kind in zip(questions.answers, questions.closed, questions.kinds, strict=True):
            counts[closed, kind][answer] += 1
            counts[closed, ""][answer] += 1
            answers[closed].add(answer)
        usual = {key: min(own, key=lambda answer: (-own[answer], answer)) for key, own in counts.items()}
        sorts: dict[str, set[bool]] = defaultdict(set)
        for text, closed in zip(questions.texts, questions.closed, strict=True):
            sorts[wording(text)].add(bool(closed))
        found = {text: tuple(sorted(own)) for text, own in sorted(sorts.items())}
        return cls(tuple(sorted(answers[True])), tuple(sorted(answers[False])), usual, found)

    def usual_for(self, closed: bool, kind: str) -> str:
        """Return the most frequent answer to questions of a kind; of a kind that training lacks, to closed or open."""
        return self.usual.get((closed, kind), self.usual.get((closed, ""), ""))

    def knows(self, answer: str, closed: bool) -> bool:
        """Tell whether training has seen an answer to such questions."""
        return answer in (self.closed if closed else self.open)


@dataclass(frozen=True)
class Replies:
    """Given and right answers, one row per question.

    Args:
        sample_ids: Question of each row.
        patient_ids: Patient of each row.
        kinds: What is asked.
        closed: Whether the question is closed.
        answers: The right answer.
        given: What was answered; blank where training has no answer of this sort.
        usual: The most frequent training answer to questions of this kind.
        seen: Whether training has seen the right answer.
    """

    sample_ids: Sequence[str]
    patient_ids: Sequence[str]
    kinds: Sequence[str]
    closed: Sequence[bool]
    answers: Sequence[str]
    given: Sequence[str]
    usual: Sequence[str]
    seen: Sequence[bool]

    @property
    def label_names(self) -> tuple[str, ...]:
        """All questions together: metrics tell closed and open ones apart."""
        return ("questions",)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per question."""
        import pandas as pd

        names = {"sample_id": "sample_ids", "patient_id": "patient_ids", "kind": "kinds", "answer": "answers"}
        texts = {name: list(getattr(self, own)) for name, own in names.items()}
        frame = pd.DataFrame(texts | {"given": list(self.given), "usual": list(self.usual)}, dtype=object)
        return frame.assign(closed=np.array(self.closed, bool), seen=np.array(self.seen, bool))

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> Replies:
        """Inverse of `to_frame`."""
        names = ("sample_id", "patient_id", "kind", "closed", "answer", "given", "usual", "seen")
        return cls(*(frame[name].tolist() for name in names))


def read_learnt(folder: Path) -> Learnt:
    """Return what `Vqa.save_parts` wrote; the usual answers are not kept.

    Raises:
        UserError: It is missing or damaged.
    """
    try:
        found = json.loads((folder / ANSWERS).read_text(encoding="utf-8"))
        wordings = {text: tuple(map(bool, sorts)) for text, sorts in found["wordings"].items()}
        return Learnt(tuple(found["closed"]), tuple(found["open"]), {}, wordings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            "The answers of the model are missing or damaged.", folder / ANSWERS, "Copy the folder again."
        ) from error


class Vqa(Task):
    """Closed and open questions, by the nearest training image of the same question or by a trained co-attention."""

    code_version: ClassVar[int] = 2
    scoring: ClassVar[str] = "vqa"
    protocols: ClassVar[frozenset[str]] = frozenset({"knn", FROZEN, "fine_tune"})
    needs: ClassVar[str] = ""

    def samples(self, store: Store) -> dict[str, Samples]:
        """Return the questions of each split.

        Raises:
            UserError: A split has none.
        """
        asked = questions_of(store, self.config)
        frame = asked.drop(columns=["split"]).merge(
            store.samples(), on="image_id", how="inner", suffixes=("", "_image")
        )
        own_split = dict(zip(asked["question_id"], asked["split"], strict=True))
        frame["split"] = frame["question_id"].map(own_split)
        found = by_split(store, frame, self.config, ["question"], np.ones((len(frame), 1)), "question_id")
        for split in SPLITS:
            if not len(found[split]):
                raise UserError(
                    f"The split '{split}' has no question.",
                    f"task {self.config.name}, data set {self.config.dataset}",
                    "Check `vqa` and `views` of the task, and the splits of the store with `medvlp data audit`.",
                )
        return found

    def questions(self, store: Store) -> Any:
        """Return a function from samples to their `Questions`."""
        table = questions_of(store, self.config).set_index("question_id")

        def of(samples: Samples) -> Questions:
            own = table.loc[list(samples.sample_ids)]
            return Questions(*(own[name].tolist() for name in ("question", "answer", "closed", "kind")))

        return of

    def training_subset(self, train: Samples, *, fraction: float, shots: int, draw: int) -> Samples:
        """Return the questions of a share of the images: what is asked of one image stays together."""
        first = np.unique(train.rows, return_index=True)[1]
        images = fraction_subset(train.take(np.sort(first)), fraction, draw)
        return train.take(np.flatnonzero(np.isin(train.rows, images.rows)))

    def settings(self, protocol: str) -> dict[str, Any]:
        """Return what of the task decides a protocol's numbers."""
        task = self.config.resolved()
        keys = ("knn_k",) if protocol == "knn" else ("fine_tune",)
        return {"code_version": self.code_version, "protocol": protocol, "vqa": task["vqa"]} | {
            key: task[key] for key in keys
        }

    def fit(self, subject: Subject, protocol: str, train: Samples, val: Samples, seed: int) -> Head:
        """Train what answers, or look for the nearest training image of the same question.

        Raises:
            UserError: The subject is no encoder, or its numbers are not finite.
        """
        if protocol == "knn":
            return self._nearest(subject, train, val)
        tunable, head = self._trained(subject, protocol, train, val, seed)
        facts = {
            "question_encoder": tunable.question_encoder,
            "closed_answers": len(tunable.learnt.closed),
            "open_answers": len(tunable.learnt.open),
        }
        return replace(head, best_params=head.best_params | facts)

    def tunable(
        self, encoder: Encoder, store: Store, train: Samples, val: Samples, seed: int, num_workers: int = 1
    ) -> AnswererTuning:
        """Return an answerer on a copy of the encoder's tower, for the answers of the training questions."""
        from medvlp.tasks._answerer import AnswererTuning

        of = self.questions(store)
        learnt = Learnt.of(of(train))
        return AnswererTuning.of(encoder, store, of, learnt, train, val, self.config, seed, num_workers)

    def kept(self, tunable: AnswererTuning, network: nn.Module, samples: Samples) -> Replies:
        """Return the network's answers beside the right ones; see `Task.kept`."""
        return _replies(samples, tunable.questions(samples), tunable.learnt, tunable.answers(network, samples))

    def images(self, store: Store, samples: Samples) -> Int[np.ndarray, " m"]:
        """Return the rows of the images that are asked about, each once."""
        return np.unique(samples.rows)

    def save_parts(self, network: Any, folder: Path) -> None:
        """Write the words that the network reads, and the answers and wordings that it has learnt.

        Raises:
            UserError: The questions are read by the encoder's text side, which is not kept.
        """
        if network.words is None:
            raise UserError(
                "The questions are read by the encoder's text side, which a model does not keep.",
                "vqa.question_text",
                "Set vqa.question_text=trained.",
            )
        network.words.save(folder)
        learnt = {"closed": network.learnt.closed, "open": network.learnt.open, "wordings": network.learnt.wordings}
        text = json.dumps(learnt, indent=1, ensure_ascii=False)
        (folder / ANSWERS).write_text(text + "\n", encoding="utf-8")

    def rebuilt(self, tower: Any, dim: int, taken: ModelInputConfig, parts: Path) -> Answerer:
        """Return an answerer for weights that were saved; see `Task.rebuilt`."""
        from medvlp.tasks._answerer import answerer
        from medvlp.tasks._report_writer import token_shape
        from medvlp.text.report_words import sentence_text
        from medvlp.text.vocabulary import WordVocabulary, load_tokens

        if self.config.fine_tune.input_size is not None:
            tower.set_input_size(self.config.fine_tune.input_size)
        words = load_tokens(parts, sentence_text)
        assert isinstance(words, WordVocabulary)
        frozen = self.config.fine_tune.freeze_encoder
        width = token_shape(tower, taken)[1]
        return answerer(tower, self.config.vqa, (width, None), words, read_learnt(parts), frozen)

    def _nearest(self, subject: Subject, train: Samples, val: Samples) -> Head:
        """Vote among the training images of the most similar question; the number of neighbours is chosen on val."""
        of = self.questions(subject.store)
        learnt = Learnt.of(of(train))
        features = np.asarray(subject.load_features(), dtype=np.float64)
        centre, scale = features[train.rows].mean(axis=0), features[train.rows].std(axis=0)
        scaled = (features - centre) / np.where(scale == 0, 1.0, scale)
        unit = scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)
        vote = Vote(of(train), unit[train.rows])
        most = sorted({min(k, len(train)) for k in self.config.knn_k})
        asked = of(val)
        given = [vote(asked, unit[val.rows], k) for k in most]
        shares = [float(np.mean([a == b for a, b in zip(own, asked.answers, strict=True)])) for own in given]
        best = int(np.argmax(shares))

        def predict(samples: Samples) -> Replies:
            questions = of(samples)
            return _replies(samples, questions, learnt, vote(questions, unit[samples.rows], most[best]))

        return Head(predict, {"k": most[best], "val_accuracy": shares[best]})


class Vote:
    """Answers by the training questions of the same wording, or of the wording that shares most words.

    Args:
        questions: Training questions.
        unit: Features of their images, of length 1; of width 0 the most frequent answer wins.
    """

    def __init__(self, questions: Questions, unit: Float[np.ndarray, "n d"]) -> None:
        self.unit, self.answers = unit, np.array(questions.answers, dtype=object)
        self._places: dict[tuple[bool, frozenset[str]], list[int]] = defaultdict(list)
        for place, (text, closed) in enumerate(zip(questions.texts, questions.closed, strict=True)):
            self._places[closed, _words(text)].append(place)
        self._found: dict[tuple[bool, frozenset[str]], Int[np.ndarray, " m"]] = {}

    def __call__(self, questions: Questions, unit: Float[np.ndarray, "q d"], k: int) -> list[str]:
        """Return an answer to every question; blank where training has no closed, or no open, question."""
        asked = zip(questions.texts, questions.closed, unit, strict=True)
        return [self._one(closed, _words(text), own, k) for text, closed, own in asked]

    def _one(self, closed: bool, words: frozenset[str], unit: Float[np.ndarray, " d"], k: int) -> str:
        places = self._alike(closed, words)
        if not len(places):
            return ""
        similarity = np.round(self.unit[places] @ unit, 12)
        nearest = np.argsort(-similarity, kind="stable")[: k if len(unit) else len(places)]
        weights = np.exp((similarity[nearest] - similarity[nearest[0]]) / TEMPERATURE)
        votes: dict[str, float] = defaultdict(float)
        for answer, weight in zip(self.answers[places[nearest]], weights, strict=True):
            votes[answer] += float(weight)
        return min(votes, key=lambda answer: (-round(votes[answer], 9), answer))

    def _alike(self, closed: bool, words: frozenset[str]) -> Int[np.ndarray, " m"]:
        """Return the training questions whose words are most like these (Jaccard)."""
        key = closed, words
        if key not in self._found:
            share = {
                other: len(words & other[1]) / max(len(words | other[1]), 1)
                for other in self._places
                if other[0] == closed
            }
            best = max(share.values(), default=0.0)
            same = [place for other, value in share.items() if value == best for place in self._places[other]]
            self._found[key] = np.array(sorted(same), dtype=np.int64)
        return self._found[key]


def wording(text: str) -> str:
    """Return the words of a question, in order: lower case, letters and digits alone."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def _words(text: str) -> frozenset[str]:
    return frozenset(wording(text).split())


def _replies(samples: Samples, questions: Questions, learnt: Learnt, given: Sequence[str]) -> Replies:
    pairs = list(zip(questions.closed, questions.kinds, strict=True))
    known = partial(map, learnt.knows)
    return Replies(
        samples.sample_ids,
        samples.patient_ids,
        questions.kinds,
        questions.closed,
        questions.answers,
        given,
        [learnt.usual_for(closed, kind) for closed, kind in pairs],
        list(known(questions.answers, questions.closed)),
    )
