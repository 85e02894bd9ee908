"""What answers questions: an image tower, frozen or tuned, a reader of questions, and co-attention between them.

Guarantee: a closed question is answered by a closed training answer, an open one by an open one. The text side of an
encoder is never changed: its tokens of each wording are computed once. A frozen tower stays in evaluation mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from medvlp.data.inputs import InputLoader, fitting_augmentation
from medvlp.data.transforms import normalise
from medvlp.data.volume_augment import on_device
from medvlp.models.fusion import Fusion, FusionSizes
from medvlp.tasks._fine_tune import Term, Tunable, check_finite
from medvlp.tasks._report_writer import MOST_KEPT, as_they_are, frozen_tokens, sized_tower, token_shape
from medvlp.tasks._study_images import TokenCache
from medvlp.text.vocabulary import WordVocabulary
from medvlp.types import Batch, Features

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from medvlp.config.data import AnyAugmentConfig
    from medvlp.config.questions import VqaConfig
    from medvlp.config.task import TaskConfig
    from medvlp.store.array_store import Store
    from medvlp.tasks.base import Samples
    from medvlp.tasks.vqa import Learnt, Questions
    from medvlp.zoo import Encoder

OF_ENCODER, TRAINED = "text side of the encoder", "trained with the head"
TEXTS_AT_ONCE = 64


class Reader(nn.Module):
    """A small trained text encoder: words with their places through one self-attention layer.

    Args:
        words: Number of words.
        width: Of its output.
        longest: Most tokens.
        heads: Of its attention.
        dropout: Of the layer.
    """

    def __init__(self, words: int, width: int, longest: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(longest, width)
        self.layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout, batch_first=True)

    def forward(self, ids: Int[torch.Tensor, "b l"], mask: Bool[torch.Tensor, "b l"]) -> Float[torch.Tensor, "b l d"]:
        """Return the states of tokens; `mask` is True at real ones."""
        at = torch.arange(ids.shape[1], device=ids.device)
        return self.layer(self.words(ids) + self.places(at), src_key_padding_mask=~mask)


class Answerer(nn.Module):
    """Image tower, reader, co-attention and a linear head over all answers.

    Args:
        tower: Module from normalised pixels to `Features`.
        reader: From token ids to states; None where the states of texts are given.
        fusion: Of image and question.
        sizes: Width of the tower's tokens, of the reader's, of the fusion.
        frozen: The tower has no gradient and stays in evaluation mode.
        words: Of the reader.
        learnt: What the answers are.
    """

    def __init__(
        self,
        tower: nn.Module,
        reader: Reader | None,
        fusion: Fusion,
        sizes: tuple[int, int, int],
        frozen: bool,
        words: WordVocabulary | None,
        learnt: Learnt,
    ) -> None:
        super().__init__()
        self.frozen, self.words, self.learnt = frozen, words, learnt
        self.tower = tower.requires_grad_(not frozen)
        self.reader, self.fusion = reader, fusion
        self.image_norm, self.text_norm = nn.LayerNorm(sizes[0]), nn.LayerNorm(sizes[1])
        self.head = nn.Linear(2 * sizes[2], len(learnt.closed) + len(learnt.open))

    def train(self, mode: bool = True) -> Answerer:
        """Switch to training mode; a frozen tower stays in evaluation mode."""
        super().train(mode)
        self.tower.train(mode and not self.frozen)
        return self

    def answer(
        self,
        image: Float[torch.Tensor, "b p d"],
        text: Float[torch.Tensor, "b l t"] | Int[torch.Tensor, "b l"],
        mask: Bool[torch.Tensor, "b l"],
    ) -> Float[torch.Tensor, "b a"]:
        """Return a logit for every answer, from the tokens of images and the states, or token ids, of questions."""
        states = self.text_norm(text if self.reader is None else self.reader(text, mask))
        tokens = self.image_norm(image)
        shown = self.fusion.embed_image(Features(tokens, tokens.mean(dim=1), (tokens.shape[1],)))
        fused = self.fusion(shown, self.fusion.embed_text(states), mask)
        return self.head(self.fusion.pool(fused))

    def barred(self, closed: Sequence[bool]) -> Float[torch.Tensor, "b a"]:
        """Return minus infinity at the answers of the other sort."""
        device = self.head.weight.device
        sort = torch.tensor([True] * len(self.learnt.closed) + [False] * len(self.learnt.open), device=device)
        own = torch.tensor(list(closed), device=device)
        return torch.zeros(len(own), len(sort), device=device).masked_fill(own[:, None] != sort, -math.inf)

    def named(self, logits: Float[torch.Tensor, "b a"], closed: Sequence[bool]) -> list[str]:
        """Return the answer of each question; blank where training has no closed, or no open, answers."""
        names = (*self.learnt.closed, *self.learnt.open)
        best = (logits + self.barred(closed)).argmax(dim=1).tolist()
        some = [bool(self.learnt.closed if own else self.learnt.open) for own in closed]
        return [names[place] if there else "" for place, there in zip(best, some, strict=True)]


def answerer(
    tower: nn.Module,
    how: VqaConfig,
    widths: tuple[int, int | None],
    words: WordVocabulary | None,
    learnt: Learnt,
    frozen: bool,
) -> Answerer:
    """Return a fresh answerer on a tower.

    Args:
        tower: Module from normalised pixels to `Features`.
        how: Sizes.
        widths: Of the tower's tokens, and of the encoder's states of texts; None where words are read.
        words: Of the small text encoder; None where the encoder's text side reads.
        learnt: What the answers are.
        frozen: The tower has no gradient.
    """
    reader = None if words is None else Reader(words.size, how.width, how.max_tokens, how.heads, how.dropout)
    text_width = how.width if widths[1] is None else widths[1]
    sizes = FusionSizes(how.width, how.layers, how.heads, how.hidden, how.dropout, 1e-5)
    fusion = Fusion(widths[0], text_width, sizes)
    return Answerer(tower, reader, fusion, (widths[0], text_width, how.width), frozen, words, learnt)


class Wordings:
    """Questions as the network reads them: states of the encoder's text side, or ids of the training words.

    Args:
        encoder: Its text side is used where `words` is None.
        words: Words of the small text encoder.
        max_tokens: Longest question in words.
    """

    def __init__(self, encoder: Encoder, words: WordVocabulary | None, max_tokens: int) -> None:
        self.encoder, self.words, self.max_tokens = encoder, words, max_tokens
        self._kept: dict[str, torch.Tensor] = {}

    def __call__(self, texts: Sequence[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return states `[b l t]` or ids `[b l]`, and the mask of real tokens."""
        if self.words is not None:
            ids, mask = self.words.encode(texts, self.max_tokens)
            longest = int(mask.sum(axis=1).max())
            return torch.from_numpy(ids[:, :longest]).to(device), torch.from_numpy(mask[:, :longest]).to(device)
        self._read([text for text in dict.fromkeys(texts) if text not in self._kept])
        own = [self._kept[text] for text in texts]
        states = nn.utils.rnn.pad_sequence(own, batch_first=True).to(device)
        lengths = torch.tensor([len(one) for one in own], device=device)
        return states, torch.arange(states.shape[1], device=device) < lengths[:, None]

    def _read(self, texts: Sequence[str]) -> None:
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part = texts[start : start + TEXTS_AT_ONCE]
            found = self.encoder.encode_text(part)
            for text, states, mask in zip(part, found.tokens.float().cpu(), found.mask.cpu(), strict=True):
                self._kept[text] = states[mask].clone()


class QuestionLoader(InputLoader):
    """Batches of questions: `index` is their place among the samples, `pixels` show their images.

    Args:
        store: The prepared store.
        images: Image of each question, as row of the images table.
        with_pixels: False makes batches whose pixels are empty.
        **options: As for `InputLoader`.
    """

    def __init__(self, store: Store, images: Int[np.ndarray, " n"], *, with_pixels: bool, **options: Any) -> None:
        super().__init__(store, np.arange(len(images)), **options)
        self.images, self.with_pixels = images, with_pixels

    def load(self, epoch: int, step: int, rows: Int[np.ndarray, " b"]) -> Batch:
        """Make one batch; called from worker threads."""
        pixels: torch.Tensor = torch.zeros((0, 1, 1, 1), dtype=torch.uint8)
        extra: dict[str, torch.Tensor] = {}
        if self.with_pixels:
            pixels, extra = self.seen(epoch, self.images[rows], rows)
        return replace(self.batch(rows, pixels), extra=extra)


class AnswererTuning(Tunable):
    """Training by cross-entropy over the answers of the question's sort, judged by accuracy on validation.

    Questions whose answer training cannot give have no loss; on validation they count as wrong. Build it with `of`.
    """

    criterion: ClassVar[str] = "accuracy"
    network: Answerer

    def __init__(
        self,
        network: Answerer,
        wordings: Wordings,
        encoder: Encoder,
        store: Store,
        questions: Callable[[Samples], Questions],
        learnt: Learnt,
        train: Samples,
        val: Samples,
        config: TaskConfig,
        seed: int,
        num_workers: int = 1,
    ) -> None:
        self.num_workers = num_workers
        self.network, self.wordings, self.name, self.store = network, wordings, encoder.name, store
        self.questions, self.learnt, self.val = questions, learnt, val
        self.device, self.how = encoder.device, config.fine_tune
        size = self.how.input_size or encoder.preprocessing.input.size
        self.input = encoder.preprocessing.input.model_copy(update={"size": size})
        self.question_encoder = TRAINED if wordings.words is not None else OF_ENCODER
        self.kept = self._cache(network, len(np.unique(train.rows)))
        self.loader = self._loader(train, seed, self.how.augment)
        self._train = self._table(train)

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        store: Store,
        questions: Callable[[Samples], Questions],
        learnt: Learnt,
        train: Samples,
        val: Samples,
        config: TaskConfig,
        seed: int,
        num_workers: int = 1,
    ) -> AnswererTuning:
        """Return the training of a fresh head on a copy of an encoder's tower.

        Args:
            encoder: Starting point, left as it is.
            store: The prepared store.
            questions: From samples to their questions.
            learnt: Answers of the training questions.
            train: Training samples.
            val: Validation samples.
            config: The task.
            seed: Seed of order and augmentation; weights are drawn from torch's present generator.
            num_workers: Threads that load.
        """
        how = config.vqa
        words = None
        if how.question_text == "trained" or not encoder.has_text:
            words = WordVocabulary.build(questions(train).texts, 1)
        wordings = Wordings(encoder, words, how.max_tokens)
        tower = sized_tower(encoder, config.fine_tune.input_size)
        size = config.fine_tune.input_size or encoder.preprocessing.input.size
        taken = encoder.preprocessing.input.model_copy(update={"size": size})
        width = token_shape(tower, taken)[1]
        of_text = None
        if words is None:
            first = wordings(questions(train.take(np.arange(1))).texts, encoder.device)[0]
            of_text = int(first.shape[2])
        network = answerer(tower, how, (width, of_text), words, learnt, config.fine_tune.freeze_encoder)
        ready = network.to(encoder.device)
        return cls(ready, wordings, encoder, store, questions, learnt, train, val, config, seed, num_workers)

    def terms(self, network: nn.Module, batch: Batch) -> dict[str, Term]:
        """Return the cross-entropy among the answers of each question's sort, and the number of questions."""
        at = batch.index.numpy()
        questions, rows, targets = self._train
        logits = self._logits(network, batch, [questions.texts[i] for i in at], rows[at])
        logits = logits + self.network.barred([questions.closed[i] for i in at])
        wanted = torch.from_numpy(targets[at]).to(self.device)
        loss = nn.functional.cross_entropy(logits.float(), wanted)
        return {"answers": (loss, torch.tensor(len(at), device=self.device))}

    def validate(self, network: nn.Module) -> float:
        """Return the accuracy on the validation questions."""
        given, wanted = self.answers(network, self.val), self.questions(self.val).answers
        return float(np.mean([one == other for one, other in zip(given, wanted, strict=True)]))

    @torch.no_grad()
    def answers(self, network: nn.Module, samples: Samples) -> list[str]:
        """Return the network's answers; blank where training has no closed, or no open, answers.

        Raises:
            UserError: Its numbers are not finite.
        """
        if not len(samples):
            return []
        network.eval()
        questions = self.questions(samples)
        found: list[str] = []
        for batch in self._loader(samples, 0, None).epoch(0):
            at = batch.index.numpy()
            closed = [questions.closed[i] for i in at]
            logits = self._logits(network, batch, [questions.texts[i] for i in at], samples.rows[at])
            check_finite(logits, self.name)
            found += self.network.named(logits, closed)
        return found

    def _logits(
        self, network: nn.Module, batch: Batch, texts: Sequence[str], images: Int[np.ndarray, " b"]
    ) -> Float[torch.Tensor, "b a"]:
        if self.kept is not None:
            tokens = torch.from_numpy(self.kept(images)).to(self.device)
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.network.frozen):
                tokens = network.get_submodule("tower")(
                    normalise(on_device(batch, self.device).pixels, self.input)
                ).tokens
        return network.answer(tokens, *self.wordings(texts, self.device))  # type: ignore[operator]

    def _table(self, train: Samples) -> tuple[Questions, Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        questions = self.questions(train)
        place = {(True, name): i for i, name in enumerate(self.learnt.closed)}
        place |= {(False, name): len(self.learnt.closed) + i for i, name in enumerate(self.learnt.open)}
        pairs = zip(questions.closed, questions.answers, strict=True)
        return questions, train.rows, np.array([place[pair] for pair in pairs], dtype=np.int64)

    def _loader(self, samples: Samples, seed: int, augment: AnyAugmentConfig | None) -> QuestionLoader:
        return QuestionLoader(
            self.store,
            samples.rows,
            with_pixels=self.kept is None,
            batch_size=self.how.batch_size,
            taken=self.input,
            seed=seed,
            augment=augment,
            num_workers=self.num_workers,
        )

    def _cache(self, network: Answerer, images: int) -> TokenCache | None:
        """Return where tokens are kept; None where tower or images change, or where they are too many."""
        shape = token_shape(network.tower, self.input)
        changed = not as_they_are(fitting_augmentation(self.how.augment, self.input, self.store.path))
        if not network.frozen or changed or images * math.prod(shape) * 4 > MOST_KEPT:
            return None
        make = frozen_tokens(network.tower, self.store, self.input, self.how.batch_size, self.device)
        return TokenCache(len(self.store.images), shape, make)
