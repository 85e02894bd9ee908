"""What a released checkpoint is, as data: architecture, views, heads, preprocessing, and the names in its file.

Guarantee: everything about a format stands in one YAML file of `zoo/released/`; a file that a user writes in the same
form works as well (`zoo:my_format.yaml:FILE`). Nothing in it is evaluated.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from medvlp.config.base import Config
from medvlp.config.load import load_config
from medvlp.config.preprocessing import (
    AnyInput,
    AnyPreprocessing,
    ModelInputConfig,
    StoredImageConfig,
    StoredVideoConfig,
    StoredVolumeConfig,
    preprocessing_of,
)
from medvlp.config.volumes import ClipInputConfig, VolumeInputConfig
from medvlp.errors import UserError, nearest

FOLDER = Path(__file__).parent / "released"
AXES = {"S": 0, "I": 0, "A": 1, "P": 1, "R": 2, "L": 2}
"""Direction in the patient -> our axis, of d, h, w, that leads there or the other way."""


class NameRule(Config):
    r"""How names of ours read in the file; regular expressions, `\1` in the templates stands for a group."""

    ours: str = Field(description="Fits the whole rest of our name behind the beginning of the part.")
    file: str | None = Field(None, description="The name in the file.")
    join: tuple[str, ...] = Field((), description="Names of tensors that are concatenated along the first axis.")
    part: tuple[int, int] | None = Field(
        None, description="i, n: ours is the i-th of n equal parts of the file's tensor."
    )
    zeros: str | None = Field(None, description="The file has no such tensor and zeros are right; the reason.")
    flat: bool = Field(False, description="The file holds all axes but the first as one, in the same order.")

    @model_validator(mode="after")
    def _one_source(self) -> NameRule:
        if (self.file is not None) + bool(self.join) + (self.zeros is not None) != 1:
            raise ValueError("give one of file, join and zeros")
        if self.part is not None and (self.file is None or not 0 <= self.part[0] < self.part[1]):
            raise ValueError("part is [i, n] of one tensor, with i from 0 to n - 1")
        if self.flat and (self.file is None or self.part is not None):
            raise ValueError("flat is of one whole tensor")
        return self


class PartRule(Config):
    """Where the tensors of one part of our model stand in the file."""

    ours: str = Field(description="Beginning of our names, e.g. `image.backbone.`; a whole name for a single tensor.")
    file: tuple[str, ...] = Field(description="Beginning in the file; of several the one that finds most names.")
    names: tuple[NameRule, ...] = Field(
        (), description="The first that fits; without one the rest of the name is the same."
    )
    optional: bool = Field(False, description="Files with none of its tensors exist; the part is then left out.")


class IgnoreRule(Config):
    """Tensors of the file that the encoder has no use for."""

    because: str
    keys: tuple[str, ...] = Field((), description="Names; `{a,b}` and `{0..11}` stand for each of several.")
    pattern: str | None = Field(None, description="Regular expression, where nobody published the list of names.")
    optional: bool = Field(False, description="Files with none of them exist.")

    @model_validator(mode="after")
    def _says_which(self) -> IgnoreRule:
        if bool(self.keys) == (self.pattern is not None):
            raise ValueError("give keys, or a pattern where the names are not known")
        return self


class PositionsConfig(Config):
    """How the position table is resized for another input size: bicubic, corners not aligned."""

    antialias: bool = False
    offset: float = Field(0.0, description="Added to the grid before the scale factor is formed; DINOv2 takes 0.1.")


class ViewConfig(Config):
    """One way from pixels to tokens and a pooled vector."""

    because: str = Field(description="Who uses it.")
    pool: Literal["cls", "mean", "mean_before_norm", "attention"] = "mean"
    tap: str | None = Field(None, description="Stage of a ResNet that the tokens come from; null is the last.")
    upsample: int | None = Field(None, description="Side to which pixels are enlarged (bilinear, corners aligned).")
    positions: PositionsConfig | None = Field(None, description="In place of those of the tower.")


class ImageConfig(Config):
    """The tower of images."""

    kind: ClassVar[str] = "image"
    family: Literal["resnet", "vit", "eva", "swin", "convnext"]
    name: str = Field(
        description="timm's name, of the family convnext torchvision's; ResNets of both have the same tensors under "
        "the same names."
    )
    args: dict[str, Any] = Field(default_factory=dict, description="Further arguments of timm's constructor.")
    last: Literal["layer3", "layer4"] = Field("layer4", description="Last stage of a ResNet that the file holds.")
    views: dict[str, ViewConfig] = Field(description="The first is the default.")
    positions: PositionsConfig = PositionsConfig()


class VolumeViewConfig(Config):
    """One way from voxels to a pooled vector."""

    because: str = Field(description="Who uses it.")
    pool: Literal["cls", "mean", "mean_before_norm", "stages", "latent"] = Field(
        "mean",
        description="stages: means of the maps of all stages, one after the other; latent: the tower's own projection.",
    )


class VolumeImageConfig(Config):
    """The tower of volumes."""

    kind: Literal["volume"]
    family: Literal["vit", "swin", "resnet", "ctvit"]
    name: str = Field(description="timm's name for the families vit and resnet, MONAI's or our class for the others.")
    args: dict[str, Any] = Field(default_factory=dict, description="Further arguments, see `released_volumes`.")
    axes: str = Field(
        "SAR",
        description="Where the axes of a tensor lead in the official code: S or I (to superior, inferior), A or P "
        "(anterior, posterior), R or L (right, left) of the patient.",
    )
    views: dict[str, VolumeViewConfig] = Field(description="The first is the default.")

    @model_validator(mode="after")
    def _three_axes(self) -> VolumeImageConfig:
        if len(self.axes) != 3 or {AXES.get(letter) for letter in self.axes} != {0, 1, 2}:
            raise ValueError("axes are three letters: one of S and I, one of A and P, one of R and L")
        return self


class ClipViewConfig(Config):
    """One way from frames to a pooled vector."""

    because: str = Field(description="Who uses it.")
    pool: Literal["cls", "mean"] = "cls"


class ClipImageConfig(Config):
    """The tower of clips."""

    kind: Literal["video"]
    family: Literal["mvit"]
    name: Literal["mvit_v2_s"] = Field(description="torchvision's name.")
    size: int = Field(224, description="Side of a frame in pixels.")
    frames: int = 16
    views: dict[str, ClipViewConfig] = Field(description="The first is the default.")


def _kind(value: Any) -> str:
    return str(value.get("kind", "image") if isinstance(value, dict) else getattr(value, "kind", "image"))


AnyImageConfig = Annotated[
    Annotated[ImageConfig, Tag("image")]
    | Annotated[VolumeImageConfig, Tag("volume")]
    | Annotated[ClipImageConfig, Tag("video")],
    Discriminator(_kind),
]
"""Of images, unless `kind` says otherwise."""
AnyStored = StoredImageConfig | StoredVolumeConfig | StoredVideoConfig
PREPROCESSING: dict[str, tuple[type[Config], type[Config]]] = {
    "image": (StoredImageConfig, ModelInputConfig),
    "volume": (StoredVolumeConfig, VolumeInputConfig),
    "video": (StoredVideoConfig, ClipInputConfig),
}
"""Kind of a tower -> what `stored` and `input` are."""


class HeadConfig(Config):
    """Layers on the last axis of features, as `{linear: [in, out]}`, `{batch_norm: width}`, `{relu: true}`."""

    layers: tuple[dict[str, Any], ...]
    normalise: bool = Field(False, description="Whether the official code returns unit vectors.")


class TextConfig(Config):
    """The text tower, one of transformers."""

    family: Literal["bert", "roberta", "longformer", "clip"] = "bert"
    config: dict[str, Any] = Field(default_factory=dict, description="Fields of transformers' configuration.")
    pooler: bool = Field(False, description="Whether BERT's tanh layer is used.")
    positions: Literal["usual", "zero"] = "usual"
    layers: tuple[int, ...] = Field((-1,), description="Hidden states that are combined; 0 is the embedding.")
    combine: Literal["sum", "mean"] = "mean"
    pool: Literal["cls", "pooler", "mean", "words"] = Field(
        "cls",
        description="mean: over real tokens; words: the sum of all tokens over `slots`; pooler: BERT's tanh layer, of "
        "CLIP the last token.",
    )
    slots: int | None = Field(None, description="Divisor of pool words.")
    legacy_pad_mean: bool = Field(False, description="Pool mean takes the pads in, as the official code does.")
    attention: bool = Field(False, description="Return what the class token attends to.")
    max_tokens: int = 512

    @model_validator(mode="after")
    def _words_need_slots(self) -> TextConfig:
        if (self.pool == "words") != (self.slots is not None):
            raise ValueError("pool: words and slots belong together")
        return self


class Release(Config):
    """One released checkpoint format."""

    name: str
    title: str
    paper: str
    source: str = Field(description="Where its authors give the file.")
    file: str = Field(description="Name of the file and what it holds.")
    container: Literal["state_dict", "model", "none"]
    model: str = Field("dual", description="Class that is built, see `medvlp.zoo.released.MODELS`.")
    image: AnyImageConfig
    text: TextConfig | None = None
    text_file: bool = Field(
        False, description="The text tower has a file of its own, given by text=FILE: its names begin with `text:`."
    )
    heads: dict[str, HeadConfig] = Field(
        default_factory=dict,
        description="`image` and `text` lead to the shared space; `image_tokens`, `text_tokens` likewise for tokens.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Facts that only the class of `model` reads.")
    projects: str | None = Field(
        None, description="View whose features the image head takes; null is the default view."
    )
    logit_scale: float | Literal["exp", "multiply", "divide"] | None = Field(
        None,
        description="Factor of cosines: a number, or how the one in the file is read, as its logarithm, the factor "
        "itself or the temperature (`objectives.scale.ScalePolicy`); null: the method has none.",
    )
    scale_bounds: tuple[float, float] | None = Field(
        None, description="The number that is stored is cut to this range before it is used."
    )
    keys: tuple[PartRule, ...]
    ignored: tuple[IgnoreRule, ...] = ()
    strip: tuple[str, ...] = Field((), description="Beginnings that are taken off if every name has them.")
    stored: AnyStored
    input: AnyInput
    processor: bool = Field(
        False, description="Mean and deviation are those of a preprocessor_config.json beside the weights, if any."
    )
    notes: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _of_one_kind(cls, given: Any) -> Any:
        """Read `stored` and `input` as the kind of the tower wants them."""
        if not isinstance(given, dict) or _kind(given.get("image")) not in PREPROCESSING:
            return given
        made = dict(given)
        for name, config in zip(("stored", "input"), PREPROCESSING[_kind(given.get("image"))], strict=True):
            if isinstance(given.get(name), dict):
                made[name] = config.model_validate(given[name])
        return made

    @model_validator(mode="after")
    def _fits_together(self) -> Release:
        stored, taken = PREPROCESSING[self.image.kind]
        if not (isinstance(self.stored, stored) and isinstance(self.input, taken)):
            raise ValueError(f"stored and input are not those of a tower of the kind {self.image.kind}")
        if self.scale_bounds is not None and not isinstance(self.logit_scale, str):
            raise ValueError("scale_bounds has no effect without a stored logit_scale")
        if not self.image.views:
            raise ValueError("image.views is empty")
        if self.projects is not None and self.projects not in self.image.views:
            raise ValueError(f"projects names no view: {self.projects}")
        return self

    @property
    def text_option(self) -> Literal["tokenizer", "text"] | None:
        """What gives the encoder its text side: the tokenizer of the file's own tower, or a whole text model."""
        if self.text is not None:
            return "tokenizer"
        return "text" if self.model == "query" else None

    @property
    def preprocessing(self) -> AnyPreprocessing:
        """From a file to what the tower takes."""
        return preprocessing_of(self.stored, self.input)

    @property
    def default_view(self) -> str:
        """Name of the first view."""
        return next(iter(self.image.views))


def release_names() -> list[str]:
    """Return the names of the shipped formats."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


@cache
def _shipped(name: str) -> Release:
    return load_config(FOLDER / f"{name}.yaml", (), Release)


def read_release(name: str) -> Release:
    """Return a format by its name, or from a YAML file of the same form.

    Raises:
        UserError: There is no such format, or the file has mistakes.
    """
    if name.endswith(".yaml"):
        return load_config(name, (), Release)
    names = release_names()
    if name not in names:
        raise UserError(
            f"The zoo has no checkpoint format '{name}'.{nearest(name, names)}",
            "zoo",
            f"There are: {', '.join(names)}.",
        )
    return _shipped(name)
