"""Configuration of what a method is built from: image tower, text tower, projection to the shared space.

Guarantee: a setting that does not fit the others, or has no effect beside them, is a mistake.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from medvlp.config.base import Config
from medvlp.config.preprocessing import ModelInputConfig
from medvlp.config.volumes import ClipInputConfig, VolumeInputConfig


class ImageTowerConfig(Config):
    """An image backbone by its timm name."""

    kind: ClassVar[str] = "image"
    name: str = "resnet18"
    weights: Path | None = Field(None, description="Local folder or safetensors file to start from.")
    drop_path: float = Field(0.0, ge=0, lt=1)
    args: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of timm's constructor, e.g. depth: 4 of a ViT."
    )
    tap: Literal["layer2", "layer3"] | None = Field(
        None,
        description="Stage of a ResNet that the tokens come from; null is the last. The pooled vector does not move.",
    )
    truncate: bool = Field(False, description="Leave out what lies behind the tap, and pool there.")
    upsample: int | None = Field(None, ge=16, description="Side to which pixels are enlarged before the backbone.")
    attention: bool = Field(False, description="Return what the class token of a ViT attends to in its last block.")
    freeze: bool = Field(False, description="No gradient, and evaluation mode, while the rest trains.")
    input: ModelInputConfig = ModelInputConfig()

    @model_validator(mode="after")
    def _truncation_needs_a_tap(self) -> ImageTowerConfig:
        if self.truncate and self.tap is None:
            raise ValueError("truncate has no effect without tap")
        return self


Voxels = Annotated[int, Field(ge=1, le=128)]


class VolumeTowerConfig(Config):
    """A backbone of volumes."""

    kind: Literal["volume"]
    family: Literal["vit", "swin", "resnet", "ctvit", "slices"] = Field(
        "vit",
        description="vit: a plain ViT of timm on patches of voxels; swin: the encoder of MONAI's SwinUNETR; resnet: a "
        "ResNet of timm, inflated; ctvit: attention within and then across slices; slices: a 2D backbone of timm on "
        "each slice, pooled by attention.",
    )
    name: str | None = Field(None, description="timm name, for the families vit, resnet and slices.")
    args: dict[str, Any] = Field(default_factory=dict, description="Further arguments of the backbone's constructor.")
    patch: tuple[Voxels, Voxels, Voxels] | None = Field(
        None, description="Voxels of a patch along d, h, w, for the families vit and ctvit."
    )
    weights: Path | None = Field(None, description="Local timm folder or file of 2D weights, which are inflated.")
    drop_path: float = Field(0.0, ge=0, lt=1)
    token_drop: float = Field(
        0.0, ge=0, lt=1, description="Share of the patches left out in training, drawn anew each step (vit)."
    )
    attention: bool = Field(False, description="Return what the class token of a ViT attends to in its last block.")
    freeze: bool = Field(False, description="No gradient, and evaluation mode, while the rest trains.")
    input: VolumeInputConfig = VolumeInputConfig()

    @model_validator(mode="after")
    def _as_the_family_needs(self) -> VolumeTowerConfig:
        needs = {"name": self.family in ("vit", "resnet", "slices"), "patch": self.family in ("vit", "ctvit")}
        for field, needed in needs.items():
            if (getattr(self, field) is not None) != needed:
                raise ValueError(
                    f"{field} {'is needed for' if needed else 'has no effect on'} the family {self.family}"
                )
        for field in ("attention", "token_drop"):
            if getattr(self, field) and self.family != "vit":
                raise ValueError(f"{field} has no effect on the family {self.family}")
        if self.weights is not None and self.family in ("swin", "ctvit"):
            raise ValueError(f"there are no 2D weights for the family {self.family}")
        return self


class ClipTowerConfig(Config):
    """A backbone of clips."""

    kind: Literal["video"]
    family: Literal["mvit", "frames"] = Field(
        "mvit", description="mvit: MViT v2 of torchvision; frames: a 2D backbone of timm on each frame, then the mean."
    )
    name: str | None = Field(None, description="timm name, for the family frames.")
    args: dict[str, Any] = Field(default_factory=dict, description="Further arguments of the backbone's constructor.")
    weights: Path | None = Field(None, description="Local weight file to start from.")
    freeze: bool = Field(False, description="No gradient, and evaluation mode, while the rest trains.")
    input: ClipInputConfig = ClipInputConfig()

    @model_validator(mode="after")
    def _name_of_frames(self) -> ClipTowerConfig:
        if (self.name is not None) != (self.family == "frames"):
            raise ValueError("name belongs to the family frames, and is needed there")
        return self


def kind_of(value: Any) -> str:
    """Return what a section is about: its own `kind`, or image."""
    kind = value.get("kind", "image") if isinstance(value, dict) else getattr(value, "kind", "image")
    return str(kind)


AnyTowerConfig = Annotated[
    Annotated[ImageTowerConfig, Tag("image")]
    | Annotated[VolumeTowerConfig, Tag("volume")]
    | Annotated[ClipTowerConfig, Tag("video")],
    Discriminator(kind_of),
]
"""Of images, unless `kind` says volume or video."""


class TextTowerConfig(Config):
    """A text tower: a local Hugging Face folder, or a fresh one with a tokenizer trained on the corpus."""

    folder: Path | None = Field(None, description="Local Hugging Face model and tokenizer folder.")
    architecture: dict[str, Any] | None = Field(
        None, description="Transformers configuration; written when a model is saved, so that it needs no folder."
    )
    family: Literal["bert", "clip", "siglip"] = Field(
        "bert",
        description="Of a fresh tower: BERT, or the text side of CLIP (causal) or SigLIP; a folder says its own.",
    )
    hidden: int = Field(256, ge=16)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    vocab_size: int = Field(4096, ge=64)
    max_tokens: int = Field(96, ge=4, le=4096)
    tokens: Literal["last", "last_4_sum"] = Field("last", description="Layers that token features come from.")
    pool: Literal["cls", "eos", "pooler", "mean", "layers_1_2_12"] = Field(
        "mean",
        description="cls: first token; eos: last real token (CLIP); pooler: BERT's tanh layer on the first token, "
        "SigLIP's head on the last slot; mean: over real tokens.",
    )
    attention: bool = Field(False, description="Return what the class token attends to in the last layer; slower.")
    freeze: bool = Field(False, description="The whole tower stays fixed.")
    freeze_layers: int = Field(0, ge=0, description="Embeddings and this many first layers stay fixed.")
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _width_divides(self) -> TextTowerConfig:
        if self.folder is None and self.architecture is None and self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        return self


class ProjectionConfig(Config):
    """Projection from tower width to the shared space."""

    dim: int = Field(256, ge=2)
    hidden: int | None = Field(None, ge=2, description="Width of a hidden layer; None is one linear map.")
    activation: Literal["relu", "gelu"] = "relu"
    batch_norm: Literal["none", "hidden", "both"] = Field(
        "none", description="Batch normalisation of the hidden layer, or of hidden and output (that without weights)."
    )
    bias: bool = True

    @model_validator(mode="after")
    def _norm_needs_a_hidden_layer(self) -> ProjectionConfig:
        if self.hidden is None and self.batch_norm != "none":
            raise ValueError("batch_norm has no effect without hidden")
        return self
