"""One lazy registry for data sets, methods and tasks, open to packages of others.

Guarantee: listing names imports nothing; a name is either a module of the given medvlp package (one file, one name)
or an entry point of a group; two claims to one name are an error, never a silent override.

A lab adds its own in its `pyproject.toml`::

    [project.entry-points."medvlp.sources"]
    our_hospital = "our_package.our_hospital"
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from medvlp.errors import UserError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Names -> the one subclass of `base` that the module of that name defines.

    Args:
        kind: What the entries are called in messages, e.g. "data set".
        package: Package whose modules are the built-in entries; `base`, `helpers` and names with a leading underscore
            are none.
        base: `module:Class` that every entry must subclass.
        group: Entry-point group through which other packages add entries.
        helpers: Modules of the package that are no entries.
    """

    def __init__(self, kind: str, package: str, base: str, group: str, helpers: tuple[str, ...] = ()) -> None:
        self.kind, self.package, self.base, self.group, self.helpers = kind, package, base, group, {"base", *helpers}

    @cached_property
    def _modules(self) -> dict[str, str]:
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.submodule_search_locations is None:
            raise UserError(f"The package {self.package} cannot be found.", fix="Install medvlp again.")
        modules = {
            module.name: f"{self.package}.{module.name}"
            for module in pkgutil.iter_modules(list(spec.submodule_search_locations))
            if module.name not in self.helpers and not module.name.startswith("_")
        }
        for entry in importlib.metadata.entry_points(group=self.group):
            if entry.name in modules:
                raise UserError(
                    f"Two packages define the {self.kind} '{entry.name}'.",
                    f"{modules[entry.name]} and {entry.value}",
                    f"Rename the entry point of group '{self.group}', or uninstall one of the packages.",
                )
            modules[entry.name] = entry.value
        return modules

    def names(self) -> list[str]:
        """Return all names, sorted, without importing any entry."""
        return sorted(self._modules)

    def check(self, name: str) -> None:
        """Raise `UserError` with the nearest name unless `name` is an entry."""
        if name not in self._modules:
            raise UserError(
                f"There is no {self.kind} named '{name}'.{nearest(name, self.names())}",
                fix=f"Use one of: {', '.join(self.names())}.",
            )

    def folder(self, name: str) -> Path:
        """Return the folder that holds the module of `name`, without importing the module."""
        self.check(name)
        spec = importlib.util.find_spec(self._modules[name])
        if spec is None or spec.origin is None:
            raise UserError(f"The module of {self.kind} '{name}' cannot be found.", self._modules[name])
        return Path(spec.origin).parent

    def get(self, name: str) -> type[T]:
        """Import and return the class of `name`.

        Raises:
            UserError: The name is unknown, or its module does not define exactly one subclass of the base class.
        """
        self.check(name)
        module = importlib.import_module(self._modules[name])
        base_module, base_name = self.base.split(":")
        base = getattr(importlib.import_module(base_module), base_name)
        found = self._subclasses(module, base)
        if len(found) != 1:
            raise UserError(
                f"The {self.kind} '{name}' must define exactly one subclass of {base_name}, found {len(found)}.",
                module.__file__ or module.__name__,
                "Keep one public class in the file; move the others to another module.",
            )
        return found[0]

    @staticmethod
    def _subclasses(module: ModuleType, base: type) -> list[type]:
        return [
            member
            for _, member in inspect.getmembers(module, inspect.isclass)
            if issubclass(member, base)
            and member is not base
            and member.__module__.startswith(module.__name__)
            and not inspect.isabstract(member)
            and not member.__name__.startswith("_")
        ]
