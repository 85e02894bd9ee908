"""The method section of a configuration: a name, and changes to what the method's own YAML declares.

Guarantee: a key of `objectives` or `options` that the method does not declare, or a value of another type than
declared, is a mistake; a method's YAML in `configs/methods` (or beside the module of a plug-in) is all that declares
it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, model_validator

from medvlp.config.base import Config
from medvlp.config.resources import shipped
from medvlp.config.towers import AnyTowerConfig, ImageTowerConfig, ProjectionConfig, TextTowerConfig
from medvlp.config.tree import Tree, merge, read_yaml
from medvlp.errors import UserError, nearest
from medvlp.registry import Registry

T = TypeVar("T", bound=Config)

METHODS: Registry[Any] = Registry(
    "method", "medvlp.methods", "medvlp.methods.base:Method", "medvlp.methods", helpers=("context",)
)


class MatryoshkaConfig(Config):
    """Matryoshka learning (arXiv 2205.13147): the loss also of the first dimensions of the shared space alone."""

    prefixes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="Numbers of leading dimensions, rising, e.g. [8, 16, 32, 64, 128]; empty is off."
    )
    weights: tuple[Annotated[float, Field(ge=0)], ...] = Field((), description="One per prefix; empty is 1 each.")

    @model_validator(mode="after")
    def _rising_with_a_weight_each(self) -> MatryoshkaConfig:
        if list(self.prefixes) != sorted(set(self.prefixes)):
            raise ValueError(f"prefixes must rise: {list(self.prefixes)}")
        if self.weights and len(self.weights) != len(self.prefixes):
            raise ValueError(f"{len(self.weights)} weights do not belong to {len(self.prefixes)} prefixes")
        return self


class MethodConfig(Config):
    """Towers, objectives and switches of a method.

    What may stand in `objectives` and `options` is what the method's own YAML in `configs/methods` declares; the loader
    checks it.
    """

    name: str
    image: AnyTowerConfig = ImageTowerConfig()
    text: TextTowerConfig | None = TextTowerConfig()
    projection: ProjectionConfig = ProjectionConfig()
    matryoshka: MatryoshkaConfig = MatryoshkaConfig()
    objectives: dict[str, dict[str, Any]] = Field(default_factory=dict, description="Term -> weight and its constants.")
    options: dict[str, Any] = Field(default_factory=dict)

    def image_of(self, kind: type[T], purpose: str) -> T:
        """Return the image tower's configuration, where it is of one kind alone.

        Args:
            kind: What it must be.
            purpose: What needs that, for the error.

        Raises:
            UserError: It is of another kind.
        """
        if not isinstance(self.image, kind):
            raise UserError(
                f"{purpose} does not work with an image tower of kind '{self.image.kind}'.",
                "method.image.kind",
                "Use another kind of tower, or another method; see `medvlp methods`.",
            )
        return self.image


def method_file(name: str) -> Path:
    """Return the YAML file that declares a method.

    Raises:
        UserError: No such method, with the nearest name.
    """
    file = shipped(f"configs/methods/{name}.yaml")
    if file.is_file():
        return file
    file = METHODS.folder(name) / f"{name}.yaml"
    if not file.is_file():
        raise UserError(f"The method '{name}' has no YAML file.", file, "Declare its objectives and options there.")
    return file


def expand_method(tree: Tree) -> Tree:
    """Return the tree with a method that is given by its name alone as a mapping, so that changes keep the name."""
    name = tree.get("method")
    return {**tree, "method": {"name": name}} if isinstance(name, str) else tree


def merge_method(tree: Tree) -> tuple[Tree, list[str]]:
    """Lay the method section of `tree` over the method's own declaration.

    Args:
        tree: A whole configuration; `method` is a name or a mapping with the key `name`.

    Returns:
        The completed configuration, and one line for each key or value that the method does not allow.
    """
    tree = expand_method(tree)
    given = tree.get("method")
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        return tree, []
    try:
        declared = read_yaml(method_file(given["name"]))
        declared.pop("about", None)
    except UserError as error:
        return tree, [f"method.name = {given['name']!r}: {error.what} {error.fix}"]
    mistakes: list[str] = []
    changes = dict(given)
    for section in ("objectives", "options"):
        if isinstance(given.get(section), dict):
            changes[section] = _checked(given[section], declared.get(section, {}), f"method.{section}", mistakes)
    own, other = declared.get("image"), changes.get("image")
    if isinstance(own, dict) and isinstance(other, dict) and other.get("kind", own.get("kind")) != own.get("kind"):
        declared.pop("image")  # nothing of a tower of another kind carries over
    return {**tree, "method": merge(declared, changes)}, mistakes


def _checked(given: Tree, declared: Tree, path: str, mistakes: list[str]) -> Tree:
    checked: Tree = {}
    for key, value in given.items():
        where = f"{path}.{key}"
        if key not in declared:
            allowed = list(declared)
            hint = nearest(str(key), allowed)
            mistakes.append(f"{where} is not a key of this method.{hint} Allowed: {', '.join(allowed) or 'none'}.")
        elif isinstance(declared[key], dict) and isinstance(value, dict):
            checked[key] = _checked(value, declared[key], where, mistakes)
        else:
            checked[key] = _as_declared(value, declared[key], where, mistakes)
    return checked


def _as_declared(value: Any, declared: Any, where: str, mistakes: list[str]) -> Any:
    kind = type(declared)
    if declared is None or type(value) is kind:
        return value
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as text
        except ValueError:
            pass
    mistakes.append(f"{where} = {value!r}: must be of type {kind.__name__}, like the default {declared!r}.")
    return declared
