"""`zoo:NAME:FILE` -> encoder: a released checkpoint with its own preprocessing and, given a tokenizer, its text side.

Guarantee: without options the features are those that classifiers of the benchmark BenchX get; texts are scored only in
the view that the checkpoint's projection was trained in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from medvlp.config.preprocessing import (
    AnyPreprocessing,
    ModelInputConfig,
    StoredImageConfig,
    StoredVideoConfig,
    StoredVolumeConfig,
    preprocessing_of,
)
from medvlp.errors import UserError, nearest
from medvlp.zoo.encoder import Encoder
from medvlp.zoo.hub import PROCESSOR, processor_norm
from medvlp.zoo.load import encoder_class, model_input, read_json
from medvlp.zoo.query_model import QueryModel
from medvlp.zoo.release import Release, read_release
from medvlp.zoo.released import ReleasedModel, load_released
from medvlp.zoo.text_side import TextSide

FORM = "zoo:NAME:FILE, or with options zoo:NAME:FILE?tokenizer=FOLDER&view=VIEW&size=PIXELS"
OPTIONS = ("tokenizer", "text", "book", "view", "size", "legacy_pad_mean")


Size = tuple[int, ...]
SIDES = (16, 2048)
"""Shortest and longest side of a model input in pixels."""


def load_zoo(rest: str, stored: StoredImageConfig | None, device: str) -> Encoder:
    """Return the encoder of `NAME:FILE?OPTIONS`; see `medvlp.zoo.load_encoder`."""
    release, file, options = named_release(rest)
    size = options.get("size")
    text = options.pop("text", None) if release.text_file else None
    model, plan = load_released(release, file, text)
    encoder = released_encoder(
        model,
        view=options.get("view"),
        size=None if size is None else tuple(int(side) for side in size.split("x")),
        tokenizer=options.get("tokenizer"),
        text=options.get("text"),
        book=options.get("book"),
        legacy_pad_mean=options.get("legacy_pad_mean", "false").lower() == "true",
        stored=stored,
        device=device,
    )
    encoder.loaded = plan.said
    return encoder


def named_release(rest: str) -> tuple[Release, Path, dict[str, str]]:
    """Return format, file and options of `NAME:FILE?OPTIONS`, before anything is loaded.

    Raises:
        UserError: There is no such format or option, or an option has a wrong value.
    """
    name, colon, named = rest.partition(":")
    if not colon or not named:
        raise UserError(f"'zoo:{rest}' names no checkpoint.", "encoder", f"Write {FORM}.")
    file, options = _options(named)
    release = with_processor(read_release(name), Path(file))
    _check_view(release, options.get("view"), "tokenizer" in options)
    size, pads = options.get("size"), options.get("legacy_pad_mean", "false").lower()
    if pads not in ("true", "false"):
        raise UserError(f"legacy_pad_mean is '{pads}'.", "encoder", "Write true or false.")
    sides = 3 if release.image.kind == "volume" else 1
    if size is not None and [side.isdigit() for side in size.split("x")] != [True] * sides:
        wrong = "no number" if sides == 1 else "not three numbers"
        example = "size=224" if sides == 1 else "size=96x96x96, voxels along d, h and w"
        raise UserError(f"The size '{size}' is {wrong}.", "encoder", f"Write e.g. {example}.")
    return release, Path(file), options


def released_encoder(
    model: ReleasedModel,
    *,
    view: str | None = None,
    size: Size | None = None,
    tokenizer: str | Path | None = None,
    text: str | Path | None = None,
    book: str | Path | None = None,
    legacy_pad_mean: bool = False,
    stored: StoredImageConfig | None = None,
    device: str = "cpu",
) -> Encoder:
    """Return the encoder of a loaded model.

    Args:
        model: From `load_released`.
        view: How images are pooled; None is the first of the format.
        size: Side of the model input in pixels, or three in voxels, where they are not those of the format; positions
            are resized.
        tokenizer: Folder of the tokenizer that the checkpoint was trained with; None leaves the text side out.
        text: Folder of the text model and its tokenizer, for the formats whose file holds none (MedKLIP, MeDSLIP).
        book: The authors' JSON file of descriptions of findings, with `text`; None takes medvlp's own descriptions.
        legacy_pad_mean: Average texts over pads, as MedCLIP's official code does.
        stored: How files become squares; None is the format's own way.
        device: Torch device.

    Raises:
        UserError: No such view, a size or a tokenizer that does not fit, or a text side that the file does not have.
    """
    release = model.release
    _check_view(release, view, tokenizer is not None)
    preprocessing = _preprocessing(release, stored, size)
    model.image.check_size(*_sides(preprocessing))
    model.image.view = view or release.default_view
    if text is not None or book is not None:
        side: TextSide | None = _books_side(model, text, book)
    else:
        side = None if tokenizer is None else _text_side(model, tokenizer, legacy_pad_mean)
    architecture: dict[str, object] = {"zoo": _described(release), "view": model.image.view}
    if side is not None:
        architecture |= {"tokenizer": side.tokenizer.hash, "legacy_pad_mean": legacy_pad_mean}
    shown = f"zoo:{release.name}" + ("" if model.image.view == release.default_view else f"@{view}")
    kind = encoder_class(preprocessing)
    return kind(shown, model.image, model.image.dim, preprocessing, architecture, text=side, device=device)


def _options(file: str) -> tuple[str, dict[str, str]]:
    """Return path and options; a file whose name holds a question mark is taken as it stands."""
    path, mark, query = file.rpartition("?")
    if not mark or Path(file).exists():
        return file, {}
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = [name for name in options if name not in OPTIONS]
    if unknown or not options:
        wrong = unknown[0] if unknown else query
        raise UserError(
            f"'{wrong}' is no option of a released checkpoint.{nearest(wrong, list(OPTIONS))}",
            "encoder",
            f"Options are {', '.join(OPTIONS)}: write {FORM}.",
        )
    return path, options


def _check_view(release: Release, view: str | None, with_text: bool) -> None:
    views = list(release.image.views)
    if view is not None and view not in views:
        raise UserError(
            f"The checkpoint format '{release.name}' has no view '{view}'.{nearest(view, views)}",
            "encoder",
            f"There are: {', '.join(views)}.",
        )
    wanted = release.projects or release.default_view
    if with_text and (view or release.default_view) != wanted:
        raise UserError(
            f"The view '{view or release.default_view}' of '{release.name}' does not lead to the space of its texts.",
            "encoder",
            f"Add view={wanted}, or leave out tokenizer=.",
        )


def _text_side(model: ReleasedModel, folder: str | Path, legacy_pad_mean: bool) -> TextSide:
    from medvlp.text.tokenizer import Tokenizer

    release = model.release
    if model.text is None or release.text is None:
        fix = (
            "Give text=FILE as well."
            if release.text_file
            else "Give text=FOLDER of the text model."
            if isinstance(model, QueryModel)
            else "Leave out tokenizer=."
        )
        raise UserError(f"The file of '{release.name}' has no text tower.", "encoder", fix)
    tokenizer = Tokenizer.from_folder(folder)
    tower, wrong = model.text.model.config, None
    if tokenizer.vocab_size > tower.vocab_size:
        wrong = f"The tokenizer has {tokenizer.vocab_size} tokens, the text tower {tower.vocab_size}."
    elif tokenizer.pad_id != tower.pad_token_id:
        wrong = f"The tokenizer pads with token {tokenizer.pad_id}, the text tower with {tower.pad_token_id}."
    if wrong is not None:
        raise UserError(wrong, folder, "Use the tokenizer that the checkpoint was trained with.")
    model.tokenizer, model.text.legacy_pad_mean = tokenizer, legacy_pad_mean
    return TextSide(model, tokenizer, release.text.max_tokens, release.options.get("prepare"))


def _books_side(model: ReleasedModel, folder: str | Path | None, book: str | Path | None) -> TextSide:
    if not isinstance(model, QueryModel):
        raise UserError(
            f"'{model.release.name}' reads no books.", "encoder", "Leave out text= and book=; tokenizer= gives texts."
        )
    if folder is None:
        raise UserError("book= names texts, and no text model reads them.", "encoder", "Give text=FOLDER as well.")
    tokenizer = model.read_books(Path(folder), None if book is None else Path(book))
    return TextSide(model, tokenizer, model.release.options["max_tokens"])


def with_processor(release: Release, file: Path) -> Release:
    """Return the format with the mean and deviation that stand beside its weights, where it takes them from there."""
    beside = (file if file.is_dir() else file.parent) / PROCESSOR
    if not release.processor or not beside.is_file():
        return release
    mean, std = processor_norm(read_json(beside, "the repository of the weights has it"))
    return release.model_copy(update={"input": model_input(release.input.size, mean, std, beside.parent)})


def _preprocessing(release: Release, stored: StoredImageConfig | None, size: Size | None) -> AnyPreprocessing:
    if not isinstance(release.input, ModelInputConfig) or not isinstance(release.stored, StoredImageConfig):
        return (_of_clips if release.image.kind == "video" else _of_volumes)(release, stored, size)
    if size is None:
        return preprocessing_of(stored or release.stored, release.input)
    side = size[0]
    if not SIDES[0] <= side <= SIDES[1]:
        raise UserError(f"The size {side} is not between {SIDES[0]} and {SIDES[1]}.", "encoder", "Write size=224.")
    config = release.input.model_copy(update={"size": side})
    return preprocessing_of(stored or _scaled(release.stored, side / release.input.size), config)


def _of_volumes(release: Release, stored: object | None, size: Size | None) -> AnyPreprocessing:
    if stored is not None and not isinstance(stored, StoredVolumeConfig):
        raise UserError(
            f"'{release.name}' takes volumes, and the squares of a store of images are none.",
            "encoder",
            "Leave stored out, or give that of a store of volumes.",
        )
    changed = {} if size is None else {"size": size}
    try:
        config = type(release.input).model_validate({**release.input.resolved(), **changed})
    except ValueError as error:
        raise UserError(f"A volume of {size} voxels is no model input.", "encoder", "Write size=96x96x96.") from error
    return preprocessing_of(stored or release.stored, config)


def _of_clips(release: Release, stored: object | None, size: Size | None) -> AnyPreprocessing:
    if stored is not None and not isinstance(stored, StoredVideoConfig):
        raise UserError(
            f"'{release.name}' takes videos, and the store holds none.",
            "encoder",
            "Leave stored out, or give that of a store of videos.",
        )
    if size is not None and size != (release.input.size,):
        raise UserError(
            f"'{release.name}' takes frames of {release.input.size} pixels alone.", "encoder", "Leave size out."
        )
    return preprocessing_of(stored or release.stored, release.input)


def _sides(preprocessing: AnyPreprocessing) -> Size:
    size = preprocessing.input.size
    return (size, size) if isinstance(size, int) else size


def _scaled(stored: StoredImageConfig, factor: float) -> StoredImageConfig:
    """Return how files become squares with more or fewer pixels that show the same."""
    side = round(stored.size * factor)
    crop = None if stored.crop_from is None else max(side, round(stored.crop_from * factor))
    return StoredImageConfig.model_validate({**stored.resolved(), "size": side, "crop_from": crop})


def _described(release: Release) -> dict[str, Any]:
    fields = release.resolved()
    decisive = ["name", "model", "image", "text", "heads", "options", "logit_scale"]
    if release.scale_bounds is not None:
        decisive.append("scale_bounds")
    return {name: fields[name] for name in decisive}
