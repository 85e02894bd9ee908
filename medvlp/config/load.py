"""From a YAML file and `key.path=value` overrides to a frozen configuration, or to the list of all its mistakes.

Guarantee: a config stays data (`yaml.safe_load`, nothing evaluated); a file that is wrong in five places is reported
with five mistakes, each with file, key path, value, what is allowed and the nearest right key, before anything starts.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

from pydantic import BaseModel, ValidationError

from medvlp.config.base import Config
from medvlp.config.cluster import expand_cluster
from medvlp.config.methods import MethodConfig, expand_method, merge_method
from medvlp.config.resources import locate
from medvlp.config.schema import KINDS
from medvlp.config.tree import Tree, merge, overlay, parse_override, read_yaml, without_alternatives
from medvlp.errors import UserError, nearest

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Loaded:
    """A checked configuration and the required keys that were still missing (their values are placeholders)."""

    config: Config
    missing: tuple[str, ...]


def read_config_tree(path: str | Path) -> tuple[Path, Tree]:
    """Return a file's path and its mapping with `base:` resolved (one level; the base names none itself)."""
    file = locate(path)
    tree = read_yaml(file)
    base_name = tree.pop("base", None)
    if base_name is None:
        return file, tree
    base_file = file.parent / str(base_name)
    if not base_file.is_file():
        raise UserError(
            f"The base file '{base_name}' does not exist.", f"{file}: base", f"It is looked for at {base_file}."
        )
    base = read_yaml(base_file)
    if "base" in base:
        raise UserError("A base file must not have a base itself.", f"{base_file}: base", "Merge the two files.")
    return file, overlay(expand_method(expand_cluster(base)), expand_cluster(tree))


@overload
def load_config(
    path: str | Path | None, overrides: Sequence[str] = (), kind: type[C] = ..., given: Tree | None = None
) -> C: ...
@overload
def load_config(
    path: str | Path | None, overrides: Sequence[str] = (), kind: None = None, given: Tree | None = None
) -> Config: ...
def load_config(
    path: str | Path | None, overrides: Sequence[str] = (), kind: type[Config] | None = None, given: Tree | None = None
) -> Config:
    """Load and check a configuration.

    Args:
        path: YAML file; None starts from `given` alone.
        overrides: `key.path=value` texts, applied last, in order.
        kind: The schema that the file must follow; None reads it from the key `kind`.
        given: Values from command-line options, laid over the file before the overrides.

    Raises:
        UserError: Lists every mistake.
    """
    loaded = check_config(path, overrides, kind, given)
    if loaded.missing:
        lines = [f"{path or 'command line'}: {key} is missing (required)" for key in loaded.missing]
        raise UserError(
            _counted(lines),
            path or "command line",
            "Give them, for example on the command line: " + " ".join(f"{k}=..." for k in loaded.missing),
        )
    return loaded.config


def check_config(
    path: str | Path | None, overrides: Sequence[str] = (), kind: type[Config] | None = None, given: Tree | None = None
) -> Loaded:
    """As `load_config`, but required keys that are absent are returned instead of being a mistake."""
    where: object = "command line"
    tree: Tree = {}
    if path is not None:
        where, tree = read_config_tree(path)
    tree = merge(expand_method(expand_cluster(tree)), expand_cluster(given or {}))
    parsed = [expand_cluster(parse_override(text)) for text in overrides]
    # All at once, so that two overrides that exclude each other remain a mistake.
    tree = without_alternatives(tree, functools.reduce(merge, parsed, {}))
    for change in parsed:
        tree = merge(expand_method(tree), change)
    schema = _schema(tree, where, kind)
    mistakes: list[str] = []
    if schema is MethodConfig:
        tree = {key: value for key, value in tree.items() if key != "about"}
    if "method" in schema.model_fields:
        tree, mistakes = merge_method(tree)
    missing: list[str] = []
    try:
        config = schema.model_validate(tree)
    except ValidationError as error:
        found = error.errors()
        missing = [_place(schema, e["loc"])[0] for e in found if e["type"] == "missing"]
        mistakes += [_describe(schema, e) for e in found if e["type"] != "missing"]
        if mistakes:
            mistakes += [f"{key} is missing (required)" for key in missing]
        else:
            for key in missing:
                tree = merge(tree, parse_override(f"{key}='<{key}>'"))
            try:
                config = schema.model_validate(tree)
            except ValidationError as second:
                mistakes = [_describe(schema, e) for e in second.errors()]
    if mistakes:
        raise UserError(
            _counted([f"{where}: {line}" for line in mistakes]),
            where,
            _how_to_mend(schema),
        )
    return Loaded(config, tuple(missing))


def _schema(tree: Tree, where: object, kind: type[Config] | None) -> type[Config]:
    named = tree.get("kind")
    if named is None and kind is not None:
        return kind
    if named is None and {"name", "objectives"} <= set(tree):
        return MethodConfig  # the declaration of a method, as in configs/methods
    if not isinstance(named, str) or named not in KINDS:
        hint = nearest(str(named), list(KINDS)) if named is not None else ""
        raise UserError(f"The key 'kind' is {named!r}.{hint}", where, f"Write kind: and one of {', '.join(KINDS)}.")
    if kind is not None and KINDS[named] is not kind:
        wanted = next(name for name, schema in KINDS.items() if schema is kind)
        raise UserError(
            f"This is a file of kind '{named}', not '{wanted}'.", where, f"Give a file with kind: {wanted}."
        )
    return KINDS[named]


def _how_to_mend(schema: type[Config]) -> str:
    example = {
        "pretrain": "configs/pretrain/medclip_nih_iu.yaml",
        "finetune": "configs/finetune/classification.yaml",
        "suite": "benchmarks/suites/nih_mini.yaml",
        "task": "benchmarks/tasks/nih_pneumonia.yaml",
    }.get(next((kind for kind, known in KINDS.items() if known is schema), ""))
    return "Mend them all." + (f" `medvlp config show {example}` prints every key." if example else "")


def _counted(lines: list[str]) -> str:
    head = "1 mistake:" if len(lines) == 1 else f"{len(lines)} mistakes:"
    return "\n".join([head, *(f"  {number}. {line}" for number, line in enumerate(lines, 1))])


def _describe(schema: type[Config], error: Any) -> str:
    (key, _), value = _place(schema, error["loc"]), error["input"]
    if error["type"] == "extra_forbidden":
        allowed = _place(schema, error["loc"][:-1])[1]
        return f"{key} is not a key here.{nearest(str(error['loc'][-1]), allowed)} Allowed: {', '.join(allowed)}."
    message = error["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(value, dict) else f" = {value!r}"
    return f"{key or 'the file'}{shown}: {message}."


def _place(schema: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """Return a place of the schema as the key path that a user writes, and the keys allowed there.

    Where a section is of one of several kinds, pydantic names the kind as a step of its own.
    """
    models, path = [schema], []
    for part in loc:
        owner = next((model for model in models if part in model.model_fields), None)
        if owner is not None and isinstance(part, str):
            models = _models_in(owner.model_fields[part].annotation)
        elif len(models) > 1 and (named := [model for model in models if _kind_of(model) == part]):
            models = named
            continue
        path.append(str(part))
    return ".".join(path), list(models[0].model_fields) if models else []


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the model classes inside an annotation such as `tuple[Model, ...]` or `Model | Other`."""
    if (
        isinstance(annotation, type)
        and not isinstance(annotation, types.GenericAlias)
        and issubclass(annotation, BaseModel)
    ):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]


def _kind_of(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("kind")
    return getattr(model, "kind", None) if field is None else next(iter(typing.get_args(field.annotation)), None)
