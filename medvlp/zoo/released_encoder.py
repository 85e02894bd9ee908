"""`zoo:NAME:FILE` -> encoder: a released checkpoint with its own preprocessing and, given a tokenizer, its text side.

Guarantee: without options the features are those that classifiers of the benchmark BenchX get; texts are scored only in
the view that the checkpoint's projection was trained in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from medvlp.config.preprocessing import Preprocessing, StoredImageConfig
from medvlp.errors import UserError, nearest
from medvlp.zoo.encoder import Encoder, TextSide
from medvlp.zoo.release import Release, read_release
from medvlp.zoo.released import ReleasedModel, load_released

FORM = "zoo:NAME:FILE, or with options zoo:NAME:FILE?tokenizer=FOLDER&view=VIEW&size=PIXELS"
OPTIONS = ("tokenizer", "view", "size", "legacy_pad_mean")


def load_zoo(rest: str, stored: StoredImageConfig | None, device: str) -> Encoder:
    """Return the encoder of `NAME:FILE?OPTIONS`; see `medvlp.zoo.load_encoder`."""
    name, colon, file = rest.partition(":")
    if not colon or not file:
        raise UserError(f"'zoo:{rest}' names no checkpoint.", "encoder", f"Write {FORM}.")
    file, options = _options(file)
    release = read_release(name)
    view = options.get("view", next(iter(release.image.views)))
    if view not in release.image.views:
        raise UserError(
            f"The checkpoint format '{release.name}' has no view '{view}'.{nearest(view, list(release.image.views))}",
            "encoder",
            f"There are: {', '.join(release.image.views)}.",
        )
    model, _ = load_released(release, file)
    model.image.view = view
    text = _text_side(model, options, view) if "tokenizer" in options else None
    preprocessing = _preprocessing(release, stored, options.get("size"))
    architecture: dict[str, object] = {"zoo": _described(release), "view": view}
    if text is not None and model.text is not None:
        architecture |= {"tokenizer": text.tokenizer.hash, "legacy_pad_mean": model.text.legacy_pad_mean}
    shown = f"zoo:{release.name}" + ("" if view == next(iter(release.image.views)) else f"@{view}")
    return Encoder(shown, model.image, model.image.dim, preprocessing, architecture, text=text, device=device)


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


def _text_side(model: ReleasedModel, options: dict[str, str], view: str) -> TextSide:
    from medvlp.text.tokenizer import Tokenizer

    release = model.release
    if model.text is None or release.text is None:
        raise UserError(f"The file of '{release.name}' has no text tower.", "encoder", "Leave out tokenizer=.")
    if release.projects is not None and view != release.projects:
        raise UserError(
            f"The view '{view}' of '{release.name}' does not lead to the space of its texts.",
            "encoder",
            f"Add view={release.projects}, or leave out tokenizer=.",
        )
    tokenizer = Tokenizer.from_folder(options["tokenizer"])
    rows = model.text.model.config.vocab_size
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"The tokenizer has {tokenizer.vocab_size} tokens, the text tower {rows}.",
            options["tokenizer"],
            "Use the tokenizer that the checkpoint was trained with.",
        )
    model.text.legacy_pad_mean = options.get("legacy_pad_mean", "false").lower() == "true"
    return TextSide(model, tokenizer, release.text.max_tokens)


def _preprocessing(release: Release, stored: StoredImageConfig | None, size: str | None) -> Preprocessing:
    config = release.input
    if size is not None:
        if not size.isdigit() or not 16 <= int(size) <= 2048:
            raise UserError(f"The size '{size}' is not between 16 and 2048.", "encoder", "Write e.g. size=224.")
        config = config.model_copy(update={"size": int(size)})
    return Preprocessing(stored=stored or release.stored, input=config)


def _described(release: Release) -> dict[str, Any]:
    fields = release.resolved()
    return {name: fields[name] for name in ("name", "model", "image", "text", "heads", "options", "logit_scale")}
