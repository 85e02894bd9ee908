"""Released checkpoints of others as models with the interface of a method, filled key by key.

Guarantee: no tensor of the model stays random and none of the file unexplained (`key_plan`); the features are those of
the official code (tested against its numbers). Nothing foreign runs: files are read by safetensors or `weights_only`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from medvlp.errors import UserError, nearest
from medvlp.methods.base import Encode, Method
from medvlp.models.grad_cam import grad_cam
from medvlp.models.weights import find_weights, is_plain, read_state
from medvlp.objectives.scale import cosine_factor
from medvlp.types import Features, TextBatch, TextFeatures
from medvlp.zoo.axes import from_axes, to_axes
from medvlp.zoo.key_plan import KeyPlan, Line, plan_keys, strip_prefixes
from medvlp.zoo.release import HeadConfig, Release
from medvlp.zoo.released_text import ReleasedText
from medvlp.zoo.released_towers import build_tower

if TYPE_CHECKING:
    from jaxtyping import Float

    from medvlp.text.tokenizer import Tokenizer

MODELS = {
    "dual": "medvlp.zoo.released:ReleasedModel",
    "concept": "medvlp.zoo.concept_model:ConceptModel",
    "fusion": "medvlp.zoo.fusion_model:FusionModel",
    "organ": "medvlp.zoo.organ_model:OrganModel",
    "prompt_fusion": "medvlp.zoo.fusion_model:PromptFusionModel",
    "query": "medvlp.zoo.query_model:QueryModel",
    "words": "medvlp.zoo.word_model:WordModel",
}
"""Value of `model` in a YAML -> class; one with further parts is a subclass in a module of its own."""


class Head(nn.Sequential):
    """Layers on the last axis of features of any shape."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(*(_layer(layer) for layer in config.layers))
        self.normalise = config.normalise

    def forward(self, values: Float[torch.Tensor, "*n d"]) -> Float[torch.Tensor, "*n e"]:
        """Return what the official code returns: unit vectors where it normalises."""
        raw = self.raw(values)
        return functional.normalize(raw, dim=-1) if self.normalise else raw

    def raw(self, values: Float[torch.Tensor, "*n d"]) -> Float[torch.Tensor, "*n e"]:
        """Return the output of the last layer."""
        flat = super().forward(values.reshape(-1, values.shape[-1]))
        return flat.reshape(*values.shape[:-1], flat.shape[-1])


def _layer(described: dict[str, Any]) -> nn.Module:
    kind, *others = described
    value, options = described[kind], {name: described[name] for name in others}
    if kind == "linear":
        return nn.Linear(*value, **options)
    if kind == "batch_norm":
        return nn.BatchNorm1d(value, **options)
    if kind == "layer_norm":
        return nn.LayerNorm(value, **options)
    return {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}[kind]()


class ReleasedModel(nn.Module):
    """Image tower, heads and, where the file holds one, text tower; the calls are those of a `Method`.

    Args:
        release: The format.

    Attributes:
        heads: By name: `image`, `text`, `image_tokens`, `text_tokens`.
        scale: What the file stores of the factor of cosines; `Release.logit_scale` says how it is read.
        tokenizer: The tokenizer of its texts, once one is given.
    """

    tokenizer: Tokenizer | None = None

    def __init__(self, release: Release) -> None:
        super().__init__()
        self.release = release
        self.image = build_tower(release.image)
        self.text = None if release.text is None else ReleasedText(release.text)
        self.heads = nn.ModuleDict({name: Head(config) for name, config in release.heads.items()})
        if isinstance(release.logit_scale, str):
            self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, pixels: Float[torch.Tensor, "b c *s"]) -> Features:
        """Return the features of normalised pixels in the view that is set."""
        return self.image(pixels)

    def encode_image(self, pixels: Float[torch.Tensor, "b c *s"], view: str | None = None) -> Features:
        """Return the features of normalised pixels in a view; None is the one that is set."""
        return self.image(pixels, view)

    def encode_text(self, text: TextBatch) -> TextFeatures:
        """Return the features of tokenised texts."""
        return self._need(self.text, "text tower")(text)

    def project_image(self, features: Features) -> Float[torch.Tensor, "b d"]:
        """Return unit vectors of images in the shared space; `features` are of the view `release.projects`."""
        has_head = "image" in self.release.heads
        return functional.normalize(self.head("image")(features.pooled) if has_head else features.pooled, dim=-1)

    def project_text(self, features: TextFeatures) -> Float[torch.Tensor, "b d"]:
        """Return unit vectors of texts in the shared space."""
        has_head = "text" in self.release.heads
        return functional.normalize(self.head("text")(features.pooled) if has_head else features.pooled, dim=-1)

    @property
    def shared_space(self) -> bool:
        """Whether images and texts have vectors in one space."""
        return self.text is not None and all(name in self.heads for name in {"image", "text"} & set(self.release.heads))

    @property
    def scores_text(self) -> bool:
        """Whether `zero_shot` works."""
        return self.shared_space and self.release.logit_scale is not None

    @property
    def heat_map_kind(self) -> str | None:
        """How `heat_map` finds evidence; None where it cannot."""
        return "Grad-CAM" if self.shared_space else None

    zero_shot: ClassVar[Any] = Method.zero_shot  # the same rules, by the same calls
    text_directions: ClassVar[Any] = Method.text_directions

    def heat_map(
        self, pixels: Float[torch.Tensor, "b c *s"], texts: Sequence[str], encode: Encode
    ) -> Float[torch.Tensor, "b t *g"]:
        """Return Grad-CAM of the cosine to each text minus that to its opposite; see `Method.heat_map`."""
        directions, tower = self.text_directions(texts, encode), self.image
        if tower.config.kind == "volume":
            turned = to_axes(pixels, tower.config.axes)
            maps = grad_cam(tower.backbone, lambda: tower.own_features(turned), self.project_image, directions)
            return from_axes(maps, tower.config.axes)
        tap = getattr(tower.config.views[tower.view], "tap", None)  # views of clips have none
        return grad_cam(tower.backbone, lambda: self.encode_image(pixels), self.project_image, directions, tap)

    @property
    def logit_scale(self) -> Float[torch.Tensor, ""]:
        """Factor of cosines before a softmax."""
        scale = self.release.logit_scale
        if isinstance(scale, str):
            return cosine_factor(self.scale, scale, *(self.release.scale_bounds or (None, None)))
        return torch.tensor(float(self._need(scale, "scale of cosines")), device=next(self.parameters()).device)

    def head(self, name: str) -> Head:
        """Return a head by name.

        Raises:
            UserError: The model has none of that name.
        """
        found = self.heads[name] if name in self.heads else None  # noqa: SIM401 - a ModuleDict has no get
        return self._need(found, f"head '{name}'")

    def leave_out(self, part: str) -> None:
        """Drop a part that the file does not hold.

        Args:
            part: Beginning of the names of its tensors.
        """
        first, _, rest = part.partition(".")
        if first == "heads":
            del self.heads[rest.partition(".")[0]]
        else:
            setattr(self, first, None)

    def _need(self, part: Any, what: str) -> Any:
        if part is None:
            raise UserError(
                f"The model '{self.release.name}' has no {what}.", "encoder", "See what it has with `medvlp zoo list`."
            )
        return part


def load_released(release: Release, path: Path | str, text: Path | str | None = None) -> tuple[ReleasedModel, KeyPlan]:
    """Return a model filled from a file, in evaluation mode, and the account of the file's keys.

    Args:
        release: The format.
        path: Checkpoint, or a folder with `model.safetensors` or `pytorch_model.bin`.
        text: That of the text tower, for a format that has it in a file of its own.

    Raises:
        UserError: A file cannot be read, or is not of the format.
    """
    file = find_weights(Path(path))
    given = read_state(file)
    if text is not None:
        given |= {f"text:{name}": value for name, value in read_state(find_weights(Path(text))).items()}
    state = {name: given[original] for name, original in strip_prefixes(given, release).items()}
    model = build_released(release)
    own = {name: value.shape for name, value in model.state_dict().items()}
    plan = plan_keys(own, {name: value.shape for name, value in state.items()}, release, file)
    _check_plain(plan, model.state_dict(), state, file)
    _check_finite(plan, state, file)
    for part in plan.absent:
        model.leave_out(part)
    target = model.state_dict()
    filled = {
        name: source.tensor(state).reshape(own[name]) if source.keys else torch.zeros_like(target[name])
        for name, source in plan.sources.items()
    }
    model.load_state_dict(filled, strict=True)
    return model.eval(), plan


class _NoDraws(TorchFunctionMode):
    """Draws no random values where a constructor would: drawing takes longer than reading."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func` unless it initialises or draws."""
        kwargs = kwargs or {}
        if func in _DRAWS:
            return args[0].zero_()  # torch's trunc_normal_ draws again until all values lie in its range
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


_DRAWS = {torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.erfinv_}


def build_released(release: Release) -> ReleasedModel:
    """Return the model of a format; its parameters hold nothing until they are filled, every one, from a file.

    Raises:
        UserError: timm, transformers or torch cannot build it.
    """
    module, _, name = MODELS.get(release.model, ":").partition(":")
    if not module:
        raise UserError(
            f"There is no model '{release.model}'.{nearest(release.model, list(MODELS))}",
            f"format {release.name}: model",
            f"There are: {', '.join(MODELS)}.",
        )
    try:
        with _NoDraws():
            return getattr(importlib.import_module(module), name)(release)
    except (RuntimeError, TypeError, ValueError, KeyError, AssertionError) as error:
        raise UserError(
            f"The model of '{release.name}' cannot be built: {error}",
            f"format {release.name}",
            "Mend image, text, heads or options of the format.",
        ) from error


def _check_plain(plan: KeyPlan, own: dict[str, torch.Tensor], state: dict[str, torch.Tensor], file: Path) -> None:
    """Refuse what a copy would silently turn into other numbers, and enter in the account what was rounded before."""
    weights = {key for name, source in plan.sources.items() if own[name].is_floating_point() for key in source.keys}
    odd = [key for key in sorted(weights) if not is_plain(state[key])]
    if odd:
        named = ", ".join(f"{key} ({state[key].dtype}, {state[key].layout})" for key in odd[:8])
        raise UserError(
            f"The file holds weights that are no plain floating-point numbers: {named}.".replace("torch.", ""),
            file,
            "Fetch the released file: quantised, sparse or complex weights are not converted back.",
        )
    for dtype in (torch.bfloat16, torch.float16):
        if names := [key for key in sorted(weights) if state[key].dtype == dtype]:
            stored = f"stored as {dtype}".replace("torch.", "")
            plan.lines.append(Line("rounded", f"{names[0]} ...", len(names), stored))


def _check_finite(plan: KeyPlan, state: dict[str, torch.Tensor], file: Path) -> None:
    used = {key for source in plan.sources.values() for key in source.keys}
    broken = [key for key in sorted(used) if not torch.isfinite(state[key].sum(dtype=torch.float64))]
    if broken:
        raise UserError(
            f"The file holds numbers that are not finite: {', '.join(broken[:8])}.", file, "Fetch the file again."
        )
