"""Towers of clips: frames in, tokens over (f, h, w) and a pooled vector out.

Guarantee: tokens are row-major over the grid, whose first axis is time; weights are loaded strictly, and what had to be
fitted to another length or size of the input is named in `record`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from medvlp.config.preprocessing import ModelInputConfig
from medvlp.config.towers import ClipTowerConfig, ImageTowerConfig
from medvlp.errors import UserError
from medvlp.models.feature_maps import as_map
from medvlp.models.tower import Tower
from medvlp.models.vision2d import ImageTower
from medvlp.models.weights import check_keys, find_weights, read_state
from medvlp.types import Features

if TYPE_CHECKING:
    from jaxtyping import Float

    from medvlp.config.volumes import ClipInputConfig

Maps = list["Float[torch.Tensor, 'b d f h w']"]
STAGES = ((96, 1, 1), (192, 2, 2), (384, 4, 11), (768, 8, 2))
"""Width, heads and blocks of each stage of MViT v2 S."""
STRIDE = (2, 4, 4)
"""Frames and pixels of a patch of MViT."""


class MViT(nn.Module):
    """MViT v2 (Li et al., arXiv 2112.01526) of torchvision with the states of every stage; without classifier.

    Args:
        config: Model input; `args` may hold `stages` (see `STAGES`) and what torchvision's `MViT` takes.

    Raises:
        UserError: torchvision does not take the arguments, or the input does not divide into patches and halvings.
    """

    def __init__(self, config: ClipTowerConfig) -> None:
        from torchvision.models.video.mvit import MViT as TorchvisionMViT

        super().__init__()
        arguments = {"stochastic_depth_prob": 0.2, **config.args}
        stages = arguments.pop("stages", STAGES)
        size, frames = config.input.size, config.input.frames
        multiple = STRIDE[1] * 2 ** (len(stages) - 1)
        if size % multiple or frames % STRIDE[0]:
            raise UserError(
                f"MViT does not divide clips of {frames} frames of {size} pixels.",
                "method.image.input",
                f"Give an even number of frames, and a multiple of {multiple} pixels.",
            )
        if config.input.channels != 3:
            raise UserError("MViT takes 3 channels.", "method.image.input.channels", "Set it to 3: grey is repeated.")
        try:
            net = TorchvisionMViT(
                spatial_size=(size, size),
                temporal_size=frames,
                block_setting=_blocks(stages),
                residual_pool=True,
                residual_with_cls_embed=False,
                rel_pos_embed=True,
                proj_after_attn=True,
                num_classes=1,
                **arguments,
            )
        except (TypeError, ValueError, AssertionError, ArithmeticError) as error:
            raise UserError(
                f"torchvision cannot build MViT with {config.args}: {error}", "method.image.args", "Leave args out."
            ) from error
        self.ends = [sum(blocks for _, _, blocks in stages[: n + 1]) - 1 for n in range(len(stages))]
        self.conv_proj, self.pos_encoding, self.blocks, self.norm = (
            net.conv_proj,
            net.pos_encoding,
            net.blocks,
            net.norm,
        )
        self.width: int = stages[-1][0]
        self.recompute = False

    def forward(self, pixels: Float[torch.Tensor, "b 3 f h w"]) -> list[tuple[torch.Tensor, tuple[int, ...]]]:
        """Return class token and patches after each stage, `[b 1+p d]`, those of the last one normed, and the grids."""
        patches = self.conv_proj(pixels)
        states, grid = self.pos_encoding(patches.flatten(2).transpose(1, 2)), tuple(patches.shape[2:])
        found = []
        for number, block in enumerate(self.blocks):
            if self.recompute and torch.is_grad_enabled():
                states, grid = checkpoint(block, states, grid, use_reentrant=False)
            else:
                states, grid = block(states, grid)
            if number in self.ends:
                found.append((states, grid))
        return [*found[:-1], (self.norm(states), grid)]


def _blocks(stages: Any) -> list[Any]:
    """Return torchvision's description of each block: a stage widens and halves height and width in its first block."""
    from torchvision.models.video.mvit import MSBlockConfig

    made, before = [], stages[0][0]
    for number, (width, heads, blocks) in enumerate(stages):
        pooled = 2 ** max(len(stages) - 1 - number, 0)
        for block in range(blocks):
            halved = 2 if number and not block else 1
            made.append(
                MSBlockConfig(
                    num_heads=heads,
                    input_channels=before,
                    output_channels=width,
                    kernel_q=[3, 3, 3],
                    kernel_kv=[3, 3, 3],
                    stride_q=[1, halved, halved],
                    stride_kv=[1, pooled, pooled],
                )
            )
            before = width
    return made


class MViTTower(Tower):
    """MViT v2 S of torchvision, or with `args.stages` a smaller one: `pooled` is the class token after the last norm.

    Args:
        config: Weights and model input.

    Raises:
        UserError: An input that does not fit, or weights that do not.
    """

    def __init__(self, config: ClipTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone: Any = MViT(config)
        self.dim = self.token_dim = self.backbone.width
        if config.weights is not None:
            self.record = load_mvit_weights(self.backbone, Path(config.weights))
        if config.freeze:
            self.requires_grad_(False)

    def forward(self, pixels: Float[torch.Tensor, "b 3 f h w"]) -> Features:
        """Return the features of normalised frames."""
        states, grid = self.backbone(pixels)[-1]
        return Features(states[:, 1:], states[:, 0], grid)

    def feature_maps(self, pixels: Float[torch.Tensor, "b 3 f h w"]) -> Maps:
        """Return the map after each stage, the last one normed."""
        return [as_map(states[:, 1:], grid) for states, grid in self.backbone(pixels)]

    def grid_of(self, pixels: Float[torch.Tensor, "b 3 f h w"]) -> tuple[int, ...]:
        """Return the grid of the tokens: frames, rows, columns."""
        halvings = 2 ** (len(self.backbone.ends) - 1)
        return tuple(
            side // stride // (halvings if axis else 1)
            for axis, (side, stride) in enumerate(zip(pixels.shape[2:], STRIDE, strict=True))
        )

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute the activations of each block in the backward pass instead of keeping them."""
        self.backbone.recompute = enabled


def load_mvit_weights(backbone: MViT, path: Path) -> dict[str, Any]:
    """Load a state dict of torchvision's MViT strictly; its classifier is dropped, relative positions are resampled.

    Returns:
        `file`, `adapted` and `dropped` keys.
    """
    file = find_weights(path)
    state, own = read_state(file), backbone.state_dict()
    dropped = sorted(key for key in state if key.startswith("head."))
    for key in dropped:
        del state[key]
    adapted = [
        key
        for key, table in state.items()
        if ".rel_pos_" in key and key in own and table.ndim == 2 and table.shape[0] != own[key].shape[0]
    ]
    for key in adapted:
        state[key] = functional.interpolate(state[key].T[None], size=len(own[key]), mode="linear")[0].T
    check_keys(own, state, file)
    backbone.load_state_dict(state, strict=True)
    return {"file": file.name, "adapted": sorted(adapted), "dropped": dropped}


class FramesTower(Tower):
    """A 2D backbone of timm on each frame: tokens of all frames, and the mean of their pooled vectors.

    Args:
        config: timm name, weights and model input; see `ImageTower` for errors.
    """

    def __init__(self, config: ClipTowerConfig) -> None:
        super().__init__()
        assert config.name is not None
        self.config = config
        self.frame = ImageTower(
            ImageTowerConfig(
                name=config.name, weights=config.weights, args=config.args, input=_frame_input(config.input)
            )
        )
        self.dim, self.token_dim, self.record = self.frame.dim, self.frame.token_dim, self.frame.record
        if config.freeze:
            self.requires_grad_(False)

    @property
    def backbone(self) -> Any:
        """The backbone of one frame."""
        return self.frame.backbone

    def forward(self, pixels: Float[torch.Tensor, "b c f h w"]) -> Features:
        """Return the features of normalised frames."""
        features, frames = self.frame(_frames(pixels)), pixels.shape[2]
        tokens = features.tokens.unflatten(0, (-1, frames)).flatten(1, 2)
        return Features(tokens, features.pooled.unflatten(0, (-1, frames)).mean(1), (frames, *features.grid))

    def feature_maps(self, pixels: Float[torch.Tensor, "b c f h w"]) -> Maps:
        """Return the maps of the backbone, frames along their first axis."""
        maps = self.frame.feature_maps(_frames(pixels))
        return [each.unflatten(0, (-1, pixels.shape[2])).transpose(1, 2) for each in maps]

    def grid_of(self, pixels: Float[torch.Tensor, "b c f h w"]) -> tuple[int, ...]:
        """Return the grid of the patches: frames, rows, columns."""
        return (pixels.shape[2], *self.frame.grid_of(pixels[:, :, 0]))

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.frame.set_gradient_checkpointing(enabled)


def _frame_input(config: ClipInputConfig) -> ModelInputConfig:
    return ModelInputConfig(size=config.size, channels=config.channels, mean=config.mean, std=config.std)


def _frames(pixels: Float[torch.Tensor, "b c f h w"]) -> Float[torch.Tensor, "b*f c h w"]:
    return pixels.transpose(1, 2).flatten(0, 1)
