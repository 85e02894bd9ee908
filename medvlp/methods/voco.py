"""VoCo: volumes without any text, by where in the volume a crop lies (Wu et al., CVPR 2024; arXiv 2410.09890).

Guarantee: the teacher is part of the state dict and moves only at the end of a training step; labels are exact shares
of voxels. The encoder that is saved is the student.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from medvlp.config.methods import MethodConfig
from medvlp.config.towers import VolumeTowerConfig
from medvlp.data.demands import Demands, VolumeView
from medvlp.errors import UserError
from medvlp.methods.base import Method, Term
from medvlp.methods.context import MethodContext
from medvlp.models.scale_pool import ScalePool
from medvlp.models.teacher import Teacher
from medvlp.objectives.context_position import (
    overlap_labels,
    position_accuracy,
    position_terms_v1,
    position_terms_v2,
)
from medvlp.objectives.volume_views import turned
from medvlp.types import Batch

if TYPE_CHECKING:
    from jaxtyping import Float


class VoCo(Method):
    """Objectives `overlap`, `inter` (version 2) and `reg`; the figure `position_accuracy`, whose chance is 1 / bases.

    `pixels` are a region of the volume that base crops tile; random crops lie anywhere within it. In version 2 student
    and teacher share the encoder and the head alone is averaged; whole crops are dropped (`drop_crops`), and other
    volumes are compared, too. Version 1 averages the whole encoder and compares both ways; its recipe is
    `configs/pretrain/voco-v1.yaml`.

    Batch normalisation of the head has neither weights nor running statistics, as in version 1, so that teacher and
    validation normalise by their batch, too. Departures: no crop is dropped in validation, where the official code
    drops on; what the blocks of `pool: blocks` learn is not saved, as they are no part of the tower.
    """

    uses_text: ClassVar[bool] = False
    shared_space: ClassVar[bool] = False
    scores_text: ClassVar[bool] = False
    heat_map_kind: ClassVar[str | None] = None
    training_parts = ("pool", "head", "teacher")

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        image = config.image_of(VolumeTowerConfig, "VoCo")
        super().__init__(config, context)
        options, self._size = self.config.options, image.input.size
        if image.family != "swin":
            raise UserError(
                f"VoCo reads five scales of a tower; the family {image.family} is not known to have them.",
                "method.image.family",
                "Use the family swin.",
            )
        _one_of("version", options["version"], (1, 2))
        _one_of("pool", options["pool"], ("blocks", "stages"))
        if options["version"] == 1 and self.is_on("inter"):
            raise UserError(
                "Version 1 of VoCo does not compare volumes with each other.",
                "method.objectives.inter.weight",
                "Set it to 0.0, or use version 2.",
            )
        self.pool = ScalePool(self.image_encoder.dim // 16, image.input.channels, options["pool"])
        self.head = _head(self.pool.dim, options["head"]["hidden"], options["head"]["dim"])
        self.teacher = Teacher(self._students())

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        options = config.options
        depth, height, width = options["crop"]
        rows, columns = options["grid"]
        view = VolumeView("inside", (depth, height, width), options["crops"])
        return Demands(reports=False, region=(depth, rows * height, columns * width), volume_views=(view,))

    def _students(self) -> dict[str, nn.Module]:
        if self.config.options["version"] == 2:
            return {"head": self.head}
        return {"image_encoder": self.image_encoder, "pool": self.pool, "head": self.head}

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `overlap`, `inter` and `reg`."""
        if not batch.views or "start_0" not in batch.extra:
            raise UserError(
                "VoCo needs crops of each volume, and where they lie.", "data", "Use batches of its demands."
            )
        options = self.config.options
        rows, columns = options["grid"]
        bases = tiles(batch.pixels, (rows, columns))
        together = torch.cat([bases, batch.views[0]], dim=1)
        shape, split = together.shape[:2], [bases.shape[1], batch.views[0].shape[1]]
        crops = self._changed(self._sized(self.normalised(together.flatten(0, 1))))
        student, teacher = self._vectors(crops)
        student_bases, student_crops = student.unflatten(0, shape).split(split, dim=1)
        teacher_bases, teacher_crops = teacher.unflatten(0, shape).split(split, dim=1)
        _, height, width = options["crop"]
        labels = overlap_labels(batch.extra["start_0"][..., 1:], (height, width), (rows, columns))
        self.figures = {"position_accuracy": position_accuracy(student_crops, teacher_bases, labels)}
        vectors = student_crops, teacher_crops, student_bases, teacher_bases, labels
        if options["version"] == 2:
            found = position_terms_v2(*vectors)
            terms = {"overlap": found["intra"], "inter": found["inter"], "reg": found["reg"]}
        else:
            found = position_terms_v1(*vectors)
            (pos, number), (neg, _) = found["pos"], found["neg"]
            terms = {"overlap": (pos + neg, number), "reg": found["reg"]}
        return self.weighted({name: term for name, term in terms.items() if self.is_on(name)})

    def _vectors(self, crops: torch.Tensor) -> tuple[Float[torch.Tensor, "n d"], Float[torch.Tensor, "n d"]]:
        """Return the student's and the teacher's vector of each crop; of some the student sees nothing."""
        pooled = self.pool(crops, self.image_encoder.feature_maps(crops))
        student = self.head(functional.dropout1d(pooled, self.config.options["drop_crops"], self.training))
        with torch.no_grad():
            taught = pooled.detach()
            if self.config.options["version"] == 1:
                encoder: Any = self.teacher["image_encoder"]
                taught = self.teacher["pool"](crops, encoder.feature_maps(crops))
            return student, self.teacher["head"](taught)

    def _sized(self, crops: Float[torch.Tensor, "n c d h w"]) -> Float[torch.Tensor, "n c *s"]:
        """Return crops with the size of the model input."""
        size = self._size
        if tuple(crops.shape[2:]) == size:
            return crops
        return functional.interpolate(crops, size, mode="trilinear", align_corners=False)

    def _changed(self, crops: Float[torch.Tensor, "n c *s"]) -> Float[torch.Tensor, "n c *s"]:
        """Return crops of which some are mirrored along each axis and some turned in the plane, while training."""
        share = self.config.options["turned_share"]
        if not self.training or not share:
            return crops
        for axis in (2, 3, 4):
            chosen = torch.rand(len(crops), device=crops.device) < share
            crops = torch.where(chosen[:, None, None, None, None], crops.flip(axis), crops)
        if crops.shape[3] == crops.shape[4]:
            chosen = torch.rand(len(crops), device=crops.device) < share
            crops = turned(crops, torch.randint(1, 4, (len(crops),), device=crops.device) * chosen)
        return crops

    def end_step(self) -> None:
        """Move the teacher towards the student."""
        self.teacher.update(self._students(), self.config.options["momentum"])


def tiles(region: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Return the base crops `[b k c d h w]` of regions `[b c d H W]`, row-major over the last two axes."""
    rows, columns = grid
    cut = region.unflatten(4, (columns, -1)).unflatten(3, (rows, -1))
    return cut.permute(0, 3, 5, 1, 2, 4, 6).flatten(1, 2)


def _head(width: int, hidden: int, dim: int) -> nn.Sequential:
    """Return three linear maps with batch normalisation and ReLU between them."""
    layers: list[nn.Module] = []
    for _ in range(2):
        norm = nn.BatchNorm1d(hidden, affine=False, track_running_stats=False)
        layers += [nn.Linear(width, hidden, bias=False), norm, nn.ReLU()]
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, dim))


def _one_of(option: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        where = f"method.options.{option}"
        raise UserError(f"{where} is {value!r}.", where, f"Use one of: {', '.join(map(str, allowed))}.")
