"""A method and a batch of the sizes that a configuration names, without any data.

Guarantee: the batch has the tensors that a loader would give, as large as they can be: every text has `max_tokens`
tokens. The vocabulary is that of the text tower's folder, or as large as the configuration allows. What only data can
tell (concepts, groups of concepts) is refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from medvlp.config.towers import ClipTowerConfig, VolumeTowerConfig
from medvlp.data.token_table import TokenTable
from medvlp.errors import UserError
from medvlp.knowledge.books import anatomy_book, finding_book
from medvlp.methods import METHODS
from medvlp.methods.base import Method, complete
from medvlp.methods.context import MethodContext
from medvlp.text.labeler import FINDINGS
from medvlp.types import Batch

if TYPE_CHECKING:
    from medvlp.config.towers import TextTowerConfig
    from medvlp.config.train import PretrainConfig
    from medvlp.data.demands import Demands
    from medvlp.text.tokenizer import Tokenizer


def planned_parts(config: PretrainConfig, processes: int) -> tuple[Method, Batch]:
    """Return a fresh method and a micro-batch of one process.

    Args:
        config: The run; its store is not opened.
        processes: Processes that share a batch.

    Raises:
        UserError: The sizes hang on the data, or the batch does not split.
    """
    kind = METHODS.get(config.method.name)
    demands = kind.demands(complete(config.method))
    if demands.concepts or demands.group_size:
        what = "concepts" if demands.concepts else "groups of concepts"
        raise UserError(
            f"How many {what} there are is known from the data alone.", "data.store", "Give data.store and the like."
        )
    samples, rest = divmod(config.train.batch_size // config.train.accumulate, processes)
    if rest or not samples:
        raise UserError(
            f"A batch of {samples * processes + rest} does not split over {processes} processes.",
            "train.batch_size / train.accumulate",
            f"Give a multiple of {processes * config.train.accumulate}.",
        )
    labels = (config.data.labels or FINDINGS) if demands.labels or not demands.paired else ()
    text, context = config.method.text, MethodContext.of(None, labels)
    batch = _images(config, demands, samples)
    batch.paired = demands.paired
    if demands.labels:
        batch.labels = torch.arange(samples * len(labels)).view(samples, -1) % 2 * 1.0
    if demands.triplets:
        sizes = len(anatomy_book()), len(finding_book())
        batch.triplets = (torch.arange(samples * sizes[0] * sizes[1]) % 3 - 1).to(torch.int8).view(samples, *sizes)
    if text is not None and demands.reports:
        tokenizer = _tokenizer(text)
        context = MethodContext.of(tokenizer, labels)
        if text.folder is None:
            context = replace(context, vocab_size=text.vocab_size)
        _add_texts(batch, config, demands, tokenizer, samples, len(labels))
    return kind(config.method, context), batch


def _images(config: PretrainConfig, demands: Demands, samples: int) -> Batch:
    """Return a batch with images alone."""
    image, index = config.method.image, torch.arange(samples)
    if isinstance(image, VolumeTowerConfig):
        return _volumes(demands.region or image.input.size, demands, index)
    frames = (image.input.frames,) if isinstance(image, ClipTowerConfig) else ()

    def pixels(side: int, *more: int) -> torch.Tensor:
        return torch.zeros(samples, *more, 1, *frames, side, side, dtype=torch.uint8)

    side = image.input.size
    study = pixels(side, demands.study_images) if demands.study_images else None
    views = tuple(pixels(view.size) for view in demands.views)
    return Batch(index, pixels(side * demands.image_scale), views=views, study=study)


def _volumes(size: tuple[int, int, int], demands: Demands, index: torch.Tensor) -> Batch:
    samples = len(index)
    extra = {"affine": torch.eye(4, dtype=torch.float64).repeat(samples, 1, 1)}
    views = []
    for number, view in enumerate(demands.volume_views):
        views.append(torch.zeros(samples, view.count, 1, *view.size, dtype=torch.int16))
        extra[f"start_{number}"] = torch.zeros(samples, view.count, 3, dtype=torch.int64)
        extra[f"affine_{number}"] = extra["affine"][:, None].repeat(1, view.count, 1, 1)
    if demands.organs:
        voxels = torch.arange(int(np.prod(size))) % (len(demands.organs) + 1)
        extra["organs"] = voxels.to(torch.uint8).view(1, *size).repeat(samples, 1, 1, 1)
    return Batch(index, torch.zeros(samples, 1, *size, dtype=torch.int16), views=tuple(views), extra=extra)


def _sentences() -> list[str]:
    return [f"{note.description.rstrip('.')}." for note in finding_book()]


def _tokenizer(text: TextTowerConfig) -> Tokenizer:
    from medvlp.text.tokenizer import Tokenizer

    if text.folder is not None:
        return Tokenizer.from_folder(text.folder)
    read = [*_sentences(), *(note.prompt() for note in anatomy_book())]
    return Tokenizer.train(read, text.vocab_size)


def _add_texts(
    batch: Batch, config: PretrainConfig, demands: Demands, tokenizer: Tokenizer, samples: int, labels: int
) -> None:
    """Set the texts of a batch, through the table that a loader takes them from."""
    assert config.method.text is not None
    longest, augment, seed = config.method.text.max_tokens, config.data.augment, config.run.seed

    def table(number: int, values: np.ndarray | None = None) -> TokenTable:
        return TokenTable(tokenizer, _long_texts(number, longest), longest, values, None, demands.sentences)

    unpaired = np.ones((samples, labels)) if not demands.paired else None
    rows = np.arange(samples)
    own = table(samples, unpaired)
    batch.text = own.batch(rows)
    if augment.shuffle_sentences or augment.drop_words:
        batch.text_augmented = own.augmented(rows, augment, seed, 0, rows)
    if demands.hidden_share:
        own.hide(batch.text, demands.hidden_share, False, seed, 0, rows)
    if demands.candidates:
        batch.candidates = table(samples * demands.candidates).batch(np.arange(samples * demands.candidates))


def _long_texts(number: int, tokens: int) -> list[str]:
    """Return texts of as many words as tokens are wanted, or more, each beginning with another sentence."""
    sentences, texts = _sentences(), []
    for first in range(number):
        text: list[str] = []
        while len(" ".join(text).split()) < tokens:
            text.append(sentences[(first + len(text)) % len(sentences)])
        texts.append(" ".join(text))
    return texts
