"""RAD-DINO: radiographs without any text, by self-distillation (Perez-Garcia et al., arXiv 2401.10815; DINOv2).

Guarantee: teacher, centres and prototypes are part of the state dict and move only at the end of a training step. The
encoder that is saved is the student, or with `train.ema` its moving average.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import nn

from medvlp.config.methods import MethodConfig
from medvlp.config.towers import ImageTowerConfig
from medvlp.data.demands import Demands, View
from medvlp.errors import UserError
from medvlp.methods.base import Method, Term
from medvlp.methods.context import MethodContext
from medvlp.models.block_masks import block_masks
from medvlp.models.prototype_head import PrototypeHead
from medvlp.models.teacher import Teacher
from medvlp.models.vit import require_vit
from medvlp.objectives.gather import all_reduce
from medvlp.objectives.self_distillation import balanced_targets, centred_targets, dino, ibot, koleo
from medvlp.types import Batch

STUDENTS = ("image_encoder", "class_head", "patch_head")
"""What the teacher has copies of."""


class RadDINO(Method):
    """DINOv2's recipe (arXiv 2304.07193): DINO on class tokens, iBOT on hidden patches, KoLeo, an averaged teacher.

    The two global views are the sample itself and its first view, both cropped by `data.augment.crop_scale`; the others
    are the small local views. The teacher's targets are balanced by Sinkhorn-Knopp (`options.centring: sinkhorn`) or
    centred by a running mean (`mean`). Weight decay stays constant, where DINOv2 raises it over the run; learning rate,
    epochs and prototypes of RAD-DINO are not published.
    """

    uses_text: ClassVar[bool] = False
    shared_space: ClassVar[bool] = False
    scores_text: ClassVar[bool] = False
    heat_map_kind: ClassVar[str | None] = None
    training_parts = ("teacher", "class_head", "patch_head", "mask_token", "class_centre", "patch_centre")

    class_centre: torch.Tensor
    patch_centre: torch.Tensor

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        options, dim = self.config.options, self.image_encoder.dim
        self._depth = len(require_vit(self.image_encoder.backbone, "Self-distillation with hidden patches").blocks)
        if not self.image_encoder.backbone.dynamic_img_size:
            raise UserError(
                "The image tower takes one size, and the local views have another.",
                "method.image.args",
                "Set method.image.args.dynamic_img_size=true.",
            )
        if options["centring"] not in ("sinkhorn", "mean"):
            raise UserError(
                f"'{options['centring']}' is no way to centre.", "method.options.centring", "Use sinkhorn or mean."
            )
        self.class_head = PrototypeHead(dim, **options["head"])
        self.patch_head = PrototypeHead(dim, **options["head"])
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.teacher = Teacher(self._students())
        prototypes = options["head"]["prototypes"]
        self.register_buffer("class_centre", torch.zeros(1, prototypes))
        self.register_buffer("patch_centre", torch.zeros(1, prototypes))
        self._arrivals: list[tuple[str, torch.Tensor]] = []

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        local = config.options["local_views"]
        small = View(local["size"], (local["least_area"], local["largest_area"]))
        return Demands(
            reports=False,
            views=(View(config.image_of(ImageTowerConfig, "RAD-DINO").input.size), *[small] * local["number"]),
        )

    def _students(self) -> dict[str, nn.Module]:
        return {name: getattr(self, name) for name in STUDENTS}

    @property
    def teacher_temperature(self) -> float:
        """Temperature of the teacher's targets: rises in the first epochs."""
        given = self.config.options["teacher_temperature"]
        done = min(1.0, self.progress.epoch / max(given["epochs"], 1e-9))
        return given["start"] + (given["end"] - given["start"]) * done

    @property
    def momentum(self) -> float:
        """Share of the teacher that stays at a step: rises to 1 along a half cosine."""
        left = 0.5 * (1 + math.cos(math.pi * self.progress.step / max(1, self.progress.steps)))
        return 1 - (1 - self.config.options["momentum"]) * left

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `dino`, `ibot` and `koleo`."""
        number = self.config.options["local_views"]["number"]
        if len(batch.views) != number + 1:
            raise UserError(
                f"RAD-DINO needs {number + 1} further views of each image, the batch has {len(batch.views)}.",
                "data",
                "Use batches made by its demands.",
            )
        large = self.normalised(torch.cat([batch.pixels, batch.views[0]]))
        tower = self.image_encoder
        hidden = block_masks(
            len(large),
            self._grid(large),
            tuple(self.config.options["hidden_shares"]),
            self.config.options["hidden_images"],
        ).to(large.device)
        class_targets, patch_targets = self._teach(large, hidden)
        seen = tower.encode_hidden(large, hidden, self.mask_token)
        rows = [self.class_head(seen.pooled)]
        if number:
            rows.append(self.class_head(tower(self.normalised(torch.cat(batch.views[1:]))).pooled))
        views = torch.cat(rows).unflatten(0, (number + 2, -1))
        temperature = self.config.options["student_temperature"]
        terms = {"dino": dino(views, class_targets.unflatten(0, (2, -1)), temperature)}
        if self.is_on("ibot"):
            terms["ibot"] = ibot(self.patch_head(seen.tokens[hidden]), patch_targets, hidden, temperature)
        if self.is_on("koleo"):
            (first, count), (second, others) = (koleo(part) for part in seen.pooled.chunk(2))
            terms["koleo"] = first + second, count + others
        return self.weighted(terms)

    def _grid(self, pixels: torch.Tensor) -> tuple[int, ...]:
        patch = self.image_encoder.backbone.patch_embed.patch_size
        return tuple(side // length for side, length in zip(pixels.shape[2:], patch, strict=True))

    @torch.no_grad()
    def _teach(self, large: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the teacher's targets of the global views and of the patches hidden from the student."""
        seen = self.teacher["image_encoder"](large)
        class_logits = self.teacher["class_head"](seen.pooled)
        patch_logits = self.teacher["patch_head"](seen.tokens[hidden]) if self.is_on("ibot") else class_logits[:0]
        temperature = self.teacher_temperature
        if self.config.options["centring"] == "sinkhorn":
            return balanced_targets(class_logits, temperature), balanced_targets(patch_logits, temperature)
        if self.training:
            self._arrivals += [("class_centre", class_logits), ("patch_centre", patch_logits)]
        return (
            centred_targets(class_logits, self.class_centre, temperature),
            centred_targets(patch_logits, self.patch_centre, temperature),
        )

    def adjust_gradients(self) -> None:
        """Hold the prototypes still in the first epochs."""
        if self.progress.epoch < self.config.options["hold_prototypes_epochs"]:
            for head in (self.class_head, self.patch_head):
                if head.prototypes.grad is not None:
                    head.prototypes.grad.zero_()  # decay alone changes their length, which counts for nothing

    def end_step(self) -> None:
        """Move the teacher towards the student, and the centres towards the step's means."""
        self.teacher.update(self._students(), self.momentum)
        for name, logits in self._arrivals:
            self._move_centre(getattr(self, name), logits)
        self._arrivals.clear()

    @torch.no_grad()
    def _move_centre(self, centre: torch.Tensor, logits: torch.Tensor) -> None:
        summed = torch.cat([logits.float().sum(0), logits.new_full((1,), len(logits), dtype=torch.float32)])
        all_reduce(summed)
        if summed[-1] > 0:
            mean = summed[:-1] / summed[-1]
            centre.lerp_(mean[None], 1 - self.config.options["centre_momentum"])

    def learning_rate_factors(self) -> dict[str, float]:
        """Return factors that fall with the depth below the last block, and a smaller one for the patch embedding."""
        decay, start = self.config.options["layer_decay"], "image_encoder.backbone"
        factors = {f"{start}.blocks.{n}.": decay ** (self._depth - n) for n in range(self._depth)}
        stem = decay ** (self._depth + 1)
        factors |= dict.fromkeys(("mask_token", f"{start}.cls_token", f"{start}.pos_embed"), stem)
        return {**factors, f"{start}.patch_embed": stem * self.config.options["patch_embed_factor"]}
