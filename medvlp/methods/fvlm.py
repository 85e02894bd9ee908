"""fVLM: each organ of a CT with what the report says of it (Shui et al., ICLR 2025, arXiv 2501.14548).

Guarantee: value and gradient of the contrast are those of the official code; an organ that the crop cuts takes no part.
An image is encoded without masks too: then every patch counts for every organ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn import functional

from medvlp.config.methods import MethodConfig
from medvlp.config.towers import VolumeTowerConfig
from medvlp.data.demands import Demands
from medvlp.errors import UserError, nearest
from medvlp.methods._pair_contrast import ScaledMethod
from medvlp.methods.base import Encode, Term
from medvlp.methods.context import MethodContext
from medvlp.models.organ_pool import OrganPool
from medvlp.models.projection import Projection
from medvlp.models.vit import require_vit
from medvlp.objectives.contrastive import text_numbers
from medvlp.objectives.organ_contrast import organ_cells, organ_contrast, whole_organs
from medvlp.objectives.terms import unit
from medvlp.objectives.zero_shot import by_class
from medvlp.text.organs import ORGANS, organ_texts, organs_of
from medvlp.types import Batch, Features, TextBatch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


class FVLM(ScaledMethod):
    """Objective `organs`; the temperature is the learnt number itself (`divide`), held within [0.001, 0.5].

    Options: `organs` lists each organ with the structures of the label maps that it is made of; `levels` are the blocks
    whose patches organs are pooled from, beside those after the last norm; `heads` and `dropout` are those of the pool.

    A report is split by anatomy words (`text.organs`), where the official texts come from a language model. An organ of
    which nothing is said has the template; one that is called normal has its own sentences, and counts as normal.

    Zero-shot: a prompt is asked of the organ that it names, one that names none of all of them, by the mean. The
    official evaluation has masks; an encoder gets none, and pools every patch.
    """

    scale_term = "organs"
    shared_space = False
    heat_map_kind = "patch-text similarity"

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        assert self.text_encoder is not None
        options, tower = self.config.options, self.image_encoder
        backbone = require_vit(tower.backbone, "fVLM pools organs from the blocks of a transformer, and")
        levels = tuple(options["levels"])
        if not levels or tuple(sorted(set(levels))) != levels or not set(levels) <= set(range(len(backbone.blocks))):
            raise UserError(
                f"The tower has {len(backbone.blocks)} blocks, and levels are {list(levels)}.",
                "method.options.levels",
                "Give numbers of blocks from 0, rising, e.g. [3, 6, 9].",
            )
        tower.keep_levels = levels
        dim = self.config.projection.dim
        self.organ_pool = OrganPool(len(self.organs), tower.token_dim, dim, options["heads"], options["dropout"])
        self.text_projection = Projection(self.text_encoder.dim, self.config.projection)
        sizes = [len(structures) for structures in organs_option(self.config).values()]
        owners = [number for number, size in enumerate(sizes, 1) for _ in range(size)]
        self.register_buffer("organ_of_structure", torch.tensor([0, *owners], dtype=torch.uint8), persistent=False)

    organ_of_structure: torch.Tensor

    @property
    def organs(self) -> tuple[str, ...]:
        """The organs, in the order of their vectors."""
        return tuple(organs_option(self.config))

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        config.image_of(VolumeTowerConfig, "fVLM needs label maps of organs, and")
        return Demands(organs=tuple(name for names in organs_option(config).values() for name in names))

    def organ_vectors(
        self, features: Features, cells: Bool[torch.Tensor, "b o p"] | None = None
    ) -> Float[torch.Tensor, "b o d"]:
        """Return a vector of each organ, of any length.

        Args:
            features: Of volumes.
            cells: Patches of each organ; None is all of them.
        """
        assert features.levels is not None
        tokens = torch.cat([features.levels.flatten(1, 2), features.tokens], dim=1)
        if cells is None:
            shape = len(tokens), len(self.organs), features.tokens.shape[1]
            cells = torch.ones(shape, dtype=torch.bool, device=tokens.device)
        return self.organ_pool(tokens, cells.repeat(1, 1, features.levels.shape[1] + 1))

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `organs`."""
        given, number = self.texts_of(batch), len(self.organs)
        structures = batch.extra.get("organs")
        if structures is None:
            raise UserError("fVLM needs label maps of organs.", "data", "Use a store with label maps of organs.")
        organs = self.organ_of_structure[structures.long()]
        embed: Any = require_vit(self.image_encoder.backbone, "fVLM").patch_embed
        counted = whole_organs(organs, number)
        features = self.encode_stored(batch.pixels)
        image = self.organ_vectors(features, organ_cells(organs, number, embed.patch_size))
        text, normal, same = self._texts(given)
        term = organ_contrast(image, text, counted, normal, ~normal, same, self.logit_scale)
        return self.weighted({"organs": term})

    def _texts(
        self, given: TextBatch
    ) -> tuple[Float[torch.Tensor, "b o d"], Bool[torch.Tensor, "b o"], Int[torch.Tensor, "b o"]]:
        """Return the vector of each organ's text, whether it is normal, and its number."""
        assert self.config.text is not None
        device = given.ids.device
        read = [organ_texts(report, self.organs) for report in given.texts]
        texts = [organ.text for organs in read for organ in organs]
        wordings = sorted(set(texts))
        tokens = self.context.tokenise(wordings, self.config.text.max_tokens).to(device)
        vectors = self.text_projection(self.encode_text(tokens).pooled)
        row = {text: number for number, text in enumerate(wordings)}
        rows = torch.tensor([row[text] for text in texts], device=device)
        shape = len(read), len(self.organs)
        normal = torch.tensor([organ.normal for organs in read for organ in organs], device=device)
        return (
            vectors[rows].unflatten(0, shape),
            normal.unflatten(0, shape),
            text_numbers(texts, device).unflatten(0, shape),
        )

    # Encoding without masks.

    def project_image(self, features: Features) -> Float[torch.Tensor, "b d"]:
        """Return one unit vector of a volume: the mean of those of its organs."""
        return unit(unit(self.organ_vectors(features)).mean(1))

    def zero_shot(
        self,
        image: Features,
        positives: Sequence[Sequence[str]],
        negatives: Sequence[Sequence[str]],
        encode: Encode,
        reduce: Literal["max", "mean"] = "mean",
    ) -> Float[torch.Tensor, "b k"]:
        """Return the probability of each question, asked of the organ that its positive prompts name."""
        groups = [prompts for pair in zip(positives, negatives, strict=True) for prompts in pair]
        prompts = [prompt for group in groups for prompt in group]
        vectors = self.project_text(encode(prompts)).float()
        of_organs = unit(self.organ_vectors(image).float())
        weights = torch.stack([self._asked(positive, vectors.device) for positive in positives])
        cosines = torch.einsum("bod,td->bot", of_organs, vectors)
        owner = torch.tensor([k for k, group in enumerate(groups) for _ in group], device=vectors.device)
        asked = torch.einsum("bot,to->bt", cosines, weights[owner // 2])
        logits = by_class(self.logit_scale.float() * asked, owner, reduce)
        return logits.unflatten(1, (len(positives), 2)).softmax(2)[..., 0]

    def heat_map(
        self, pixels: Float[torch.Tensor, "b c d h w"], texts: Sequence[str], encode: Encode
    ) -> Float[torch.Tensor, "b t *g"]:
        """Return how much more each patch alone, pooled for the organ of a text, is like it than like its opposite."""
        features, directions = self.encode_image(pixels), self.text_directions(texts, encode)
        assert features.levels is not None
        alone = Features(
            features.tokens.flatten(0, 1)[:, None],
            features.pooled,
            (1, 1, 1),
            levels=features.levels.transpose(1, 2).flatten(0, 1)[:, :, None],
        )
        vectors = unit(self.organ_vectors(alone).float()).unflatten(0, features.tokens.shape[:2])
        weights = torch.stack([self._asked([text], vectors.device) for text in texts])
        maps = torch.einsum("bpod,td,to->btp", vectors, directions.float(), weights)
        return maps.unflatten(2, features.grid)

    def _asked(self, prompts: Sequence[str], device: torch.device) -> Float[torch.Tensor, " o"]:
        """Return the weight of each organ for prompts: alike for those that they name, or for all."""
        named = {organ for prompt in prompts for organ in organs_of(prompt)}
        chosen = torch.tensor([float(organ in named) for organ in self.organs], device=device)
        return functional.normalize(chosen if chosen.any() else torch.ones_like(chosen), p=1, dim=0)


def organs_option(config: MethodConfig) -> Mapping[str, Sequence[str]]:
    """Return organ -> structures of the label maps.

    Raises:
        UserError: An organ that texts are not sorted by, a structure of two organs, or none.
    """
    where = "method.options.organs"
    listed = config.options["organs"]
    if not all(isinstance(entry, dict) and len(entry) == 1 for entry in listed):
        raise UserError("organs is no list of `organ: [structure, ...]`.", where, "See configs/methods/fvlm.yaml.")
    organs: dict[str, Sequence[str]] = {organ: names for entry in listed for organ, names in entry.items()}
    for organ in organs:
        if organ not in ORGANS:
            raise UserError(
                f"Reports are not sorted by '{organ}'.{nearest(organ, list(ORGANS))}",
                where,
                f"Use: {', '.join(ORGANS)}.",
            )
    names = [name for structures in organs.values() for name in structures]
    if not names or len(set(names)) != len(names) or not all(organs.values()) or len(organs) < len(listed):
        raise UserError(
            "An organ is made of no structure, or a structure belongs to two.", where, "Give each organ its own."
        )
    return organs
