"""Training of a report decoder on an image tower, frozen or tuned, and its texts.

Guarantee: a frozen tower stays in evaluation mode, and where training images are shown as they are it sees each of them
once. Texts are generated from images alone, by the encoder's own preprocessing, the same ones whenever they are asked
for.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from medvlp.config.data import AnyAugmentConfig, AugmentConfig, VolumeAugmentConfig
from medvlp.config.volumes import ClipInputConfig
from medvlp.data.inputs import check_side, fitting_augmentation, read_inputs
from medvlp.data.transforms import normalise
from medvlp.data.volume_augment import on_device
from medvlp.objectives.captioning import captioning
from medvlp.tasks._fine_tune import Term, Tunable
from medvlp.tasks._study_images import REAL, StudyImages, StudyLoader, TokenCache, joined
from medvlp.text.report_words import tokeniser

if TYPE_CHECKING:
    from jaxtyping import Float32, Int

    from medvlp.config.preprocessing import AnyInput, ModelInputConfig
    from medvlp.config.reports import ReportsConfig
    from medvlp.config.task import TaskConfig
    from medvlp.models.report_decoder import ReportDecoder, Visual
    from medvlp.store.array_store import Store
    from medvlp.tasks._experts.prompts import Prompts
    from medvlp.tasks.base import Samples
    from medvlp.text.vocabulary import ReportTokens
    from medvlp.types import Batch
    from medvlp.zoo import Encoder

    References = Callable[[Int[np.ndarray, "b"]], list[str]]

AS_THEY_ARE = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), brightness=0.0, contrast=0.0)
"""Training images without any change; see `as_they_are`."""
MOST_KEPT = 16 * 2**30
"""Bytes of visual tokens kept for the training images of a task; more are computed again in every epoch."""
LONGEST = 4
TINY, SMALL = 1e-15, 1e-9
"""What the caption scorer adds to numerators and to denominators."""


class ReportWriter(nn.Module):
    """An image tower and a decoder of reports.

    Args:
        tower: Module from normalised pixels to `Features`.
        decoder: From visual tokens to words.
        tokens: What the decoder reads and writes.
        frozen: The tower has no gradient and stays in evaluation mode.
    """

    def __init__(self, tower: nn.Module, decoder: ReportDecoder, tokens: ReportTokens, frozen: bool) -> None:
        super().__init__()
        self.tokens, self.frozen = tokens, frozen
        self.tower = tower.requires_grad_(not frozen)
        self.decoder = decoder

    def train(self, mode: bool = True) -> ReportWriter:
        """Switch to training mode; a frozen tower stays in evaluation mode."""
        super().train(mode)
        self.tower.train(mode and not self.frozen)
        return self

    def told(self, visual: Visual, said: Sequence[str], config: ReportsConfig) -> Visual:
        """Return what is shown together with what experts say of each study."""
        assert config.experts is not None
        encoded = self.tokens.encode(said, config.experts.max_tokens)
        ids, mask = (torch.from_numpy(part).to(visual.tokens.device) for part in encoded)
        return replace(visual, prompt=ids, prompt_mask=mask)

    @torch.no_grad()
    def write(self, visual: Visual, config: ReportsConfig) -> list[str]:
        """Return a text for each study of a batch, by the search that the configuration says."""
        banned = self.tokens.banned if config.ban_unknown else ()
        rows = self.decoder.generate(visual, config.max_tokens, config.beams, banned)
        return [self.tokens.decode(row) for row in rows.tolist()]


class ReportTuning(Tunable):
    """Training of a report writer by the likelihood of each word, judged by BLEU-4 of what it writes on validation.

    Args:
        network: Writer on a copy of the encoder's tower.
        encoder: Where it comes from.
        store: The prepared store.
        references: From the first images of studies to the texts that are learnt.
        train: Training samples.
        val: Validation samples.
        task: Text, search, batch size, augmentation.
        seed: Seed of order and augmentation.
        num_workers: Threads of the loaders.
        prompts: What experts say of each study, or None.
    """

    criterion: ClassVar[str] = "bleu_4"
    network: ReportWriter

    def __init__(
        self,
        network: ReportWriter,
        encoder: Encoder,
        store: Store,
        references: References,
        train: Samples,
        val: Samples,
        task: TaskConfig,
        seed: int,
        num_workers: int = 1,
        prompts: Prompts | None = None,
    ) -> None:
        self.network, self.name, self.store, self.prompts = network, encoder.name, store, prompts
        self.references, self.val, self.config, self.how = references, val, task.reports, task.fine_tune
        self.device, self.num_workers = encoder.device, num_workers
        self.input = model_input(task, encoder.preprocessing.input)
        self.images = StudyImages(store, task.views, self.config.max_images)
        plain = as_they_are(fitting_augmentation(self.how.augment, self.input, store.path))
        self.kept = self._cache(network, len(train)) if plain else None
        self.loader = self._loader(train.rows, seed, self.how.augment)
        learnt = np.concatenate([train.rows, val.rows])
        self._place = {row: place for place, row in enumerate(learnt.tolist())}
        self._ids, self._mask = network.tokens.encode(references(learnt), self.config.max_tokens)

    def _cache(self, network: ReportWriter, studies: int) -> TokenCache | None:
        """Return where tokens are kept; None where the tower changes, or where they are too many."""
        shape = token_shape(network.tower, self.input)
        if not network.frozen or studies * self.config.max_images * math.prod(shape) * 4 > MOST_KEPT:
            return None
        make = frozen_tokens(network.tower, self.store, self.input, self.how.batch_size, self.device)
        return TokenCache(len(self.store.images), shape, make)

    def _loader(self, rows: Int[np.ndarray, " n"], seed: int, augment: AnyAugmentConfig | None) -> StudyLoader:
        return StudyLoader(
            self.store,
            rows,
            images=self.images,
            with_pixels=self.kept is None,
            batch_size=self.how.batch_size,
            taken=self.input,
            seed=seed,
            augment=augment,
            num_workers=self.num_workers,
        )

    def _visual(self, network: nn.Module, batch: Batch) -> Visual:
        real = batch.extra[REAL]
        if self.kept is not None:
            shown = self.images.of(batch.index.numpy())
            tokens = torch.from_numpy(self.kept(shown[real.numpy()])).to(self.device)
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.network.frozen):
                tokens = network.get_submodule("tower")(
                    normalise(on_device(batch, self.device).pixels, self.input)
                ).tokens
        visual = joined(tokens, real.to(self.device))
        if self.prompts is None:
            return visual
        return self.network.told(visual, self.prompts(batch.index.numpy()), self.config)

    def terms(self, network: nn.Module, batch: Batch) -> dict[str, Term]:
        """Return the cross-entropy of each word of the references given the words before it, and their number."""
        at = [self._place[row] for row in batch.index.tolist()]
        longest = int(self._mask[at].sum(axis=1).max())
        ids, mask = (torch.from_numpy(part[at, :longest]).to(self.device) for part in (self._ids, self._mask))
        logits = network.get_submodule("decoder")(self._visual(network, batch), ids)
        return {"words": captioning(logits, ids, mask)}

    def validate(self, network: nn.Module) -> float:
        """Return BLEU-4 of the generated texts of the validation samples."""
        split = tokeniser(self.config.words)
        pairs = zip(self.texts(network, self.val), self.references(self.val.rows), strict=True)
        return bleu_4([(split(text).split(), split(reference).split()) for text, reference in pairs])

    def texts(self, network: nn.Module, samples: Samples) -> list[str]:
        """Return the generated texts of samples."""
        assert isinstance(network, ReportWriter)
        network.eval()
        with torch.no_grad():
            batches = (self._visual(network, batch) for batch in self._batches(samples))
            return [text for visual in batches for text in network.write(visual, self.config)]

    def _batches(self, samples: Samples) -> Iterator[Batch]:
        return self._loader(samples.rows, 0, None).epoch(0)


class LikelihoodReportTuning(ReportTuning):
    """As its base, judged by the mean log-likelihood of the words of the validation references."""

    criterion: ClassVar[str] = "log_likelihood"

    @torch.no_grad()
    def validate(self, network: nn.Module) -> float:
        """Return the mean over words."""
        network.eval()
        found = [self.terms(network, batch)["words"] for batch in self._batches(self.val)]
        values, counts = (torch.stack(parts).double() for parts in zip(*found, strict=True))
        return -float((values * counts).sum() / counts.sum())


def model_input(task: TaskConfig, given: ModelInputConfig) -> ModelInputConfig:
    """Return what a writer takes: the encoder's own input with the side, mean and deviation that the task sets."""
    changes: dict[str, Any] = {"size": task.fine_tune.input_size or given.size}
    for name, values in (("mean", task.reports.mean), ("std", task.reports.std)):
        if values is not None:
            changes[name] = values if given.channels == 3 else (sum(values) / len(values),)
    return given.model_copy(update=changes)


def as_they_are(augment: AnyAugmentConfig) -> bool:
    """Return whether training images or volumes are shown without any change."""
    return not augment.moves if isinstance(augment, VolumeAugmentConfig) else augment == AS_THEY_ARE


def sized_tower(encoder: Encoder, side: int | None) -> Any:
    """Return a copy of an encoder's tower that takes images of `side` pixels; None leaves it its own size.

    Raises:
        UserError: The tower cannot take this size.
    """
    check_side(encoder.preprocessing.input, side)
    tower: Any = copy.deepcopy(encoder.image_tower)
    if side is not None:
        tower.set_input_size(side)
    return tower


@torch.no_grad()
def token_shape(tower: nn.Module, taken: AnyInput) -> tuple[int, int]:
    """Return how many tokens a tower gives of one image, volume or clip, and how wide they are."""
    training, sides = tower.training, taken.size if isinstance(taken.size, tuple) else (taken.size,) * 2
    frames = (taken.frames,) if isinstance(taken, ClipInputConfig) else ()
    shape = 1, taken.channels, *frames, *sides
    shown = tower.eval()(torch.zeros(shape, device=next(tower.parameters()).device)).tokens
    tower.train(training)
    return shown.shape[1], shown.shape[2]


def frozen_tokens(
    tower: nn.Module, store: Store, taken: ModelInputConfig, batch_size: int, device: torch.device
) -> Callable[[Int[np.ndarray, " m"]], Float32[np.ndarray, "m p d"]]:
    """Return a function from rows of the images table to the tokens of a tower in evaluation mode.

    Args:
        tower: Module from normalised pixels to `Features`.
        store: The prepared store.
        taken: What the tower takes.
        batch_size: Images at a time.
        device: Of the tower.
    """

    @torch.no_grad()
    def make(rows: Int[np.ndarray, " m"]) -> Float32[np.ndarray, "m p d"]:
        training = tower.training
        tower.eval()
        found = []
        for start in range(0, len(rows), batch_size):
            pixels = read_inputs(store, rows[start : start + batch_size], taken).to(device)
            found.append(tower(normalise(pixels, taken)).tokens.float().cpu().numpy())
        tower.train(training)
        return np.concatenate(found)

    return make


def bleu_4(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> float:
    """Return BLEU-4 of all pairs of generated and reference words together, as the COCO caption scorer has it.

    It chooses an epoch; scores are for `medvlp.metrics`. Where no n-gram of a length matches it is tiny, not 0, so that
    the shorter ones still tell epochs apart.
    """
    matches, guesses = np.zeros(LONGEST), np.zeros(LONGEST)
    for generated, reference in pairs:
        for n in range(1, LONGEST + 1):
            own, wanted = (Counter(zip(*(side[i:] for i in range(n)), strict=False)) for side in (generated, reference))
            matches[n - 1] += sum((own & wanted).values())
            guesses[n - 1] += sum(own.values())
    written, given = (sum(len(pair[side]) for pair in pairs) for side in (0, 1))
    precision = (matches + TINY) / (guesses + SMALL)
    shortness = (given + SMALL) / (written + TINY)
    return float(np.prod(precision) ** (1 / LONGEST) * np.exp(min(0.0, 1 - shortness)))
