"""`medvlp methods`: which methods there are, what they need, and what of them can be changed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from medvlp.cli._common import print_table, say, say_next

if TYPE_CHECKING:
    from medvlp.config.about import About, Described, Setting

EXAMPLE = "Example: medvlp methods, then medvlp methods medslip"
NOTHING = "–"


def methods(
    name: Annotated[str | None, typer.Argument(help="One method, with all that can be changed.")] = None,
) -> None:
    """List the methods; packages that are installed beside medvlp may add their own."""
    from medvlp.config.about import describe
    from medvlp.config.methods import METHODS

    if name is not None:
        _show(describe(name))
        return
    found = [describe(each) for each in METHODS.names()]
    rows = [(each.name, *_cells(each.about)) for each in found]
    print_table("Methods", ("name", "paper", "year", "parts", "needs", "heat maps", "formulas"), rows)
    for each in found:
        if each.about is not None and each.about.note:
            say(f"{each.name}: {each.about.note}")
    say_next(["medvlp", "methods", "medslip"])


def _cells(about: About | None) -> tuple[str, ...]:
    if about is None:
        return (NOTHING,) * 6
    return (
        ", ".join(part for part in (about.title, about.paper) if part),
        str(about.year or NOTHING),
        ", ".join(about.parts) or NOTHING,
        ", ".join(about.needs) or "images alone",
        about.heat_map or "none",
        "faithful" if about.faithful else "stand-in",
    )


def _show(found: Described) -> None:
    from medvlp.config.about import LEGACY

    if found.about is not None:
        paper, year, *others = _cells(found.about)
        say(f"{found.name}: {paper}, {year}")
        for label, text in zip(("Parts", "Needs", "Heat maps", "Formulas"), others, strict=True):
            say(f"{label}: {text}")
        if found.about.note:
            say(f"Note: {found.about.note}")
    legacy = [one for one in found.options if LEGACY in one.key]
    own = [one for one in found.options if LEGACY not in one.key]
    for title, settings in (
        ("Objectives: weights and constants", found.objectives),
        ("Options", own),
        ("Mistakes of the official code that can be switched on", legacy),
    ):
        if settings:
            print_table(title, ("key", "default", ""), [_row(one) for one in settings])
    if found.recipes:
        say(f"Recipes: {', '.join(found.recipes)}")
        tiny = next((recipe for recipe in found.recipes if recipe.endswith("-tiny.yaml")), found.recipes[0])
        say_next(["medvlp", "pretrain", tiny, "data.store=STORE", f"run.dir=runs/{found.name}"])


def _row(one: Setting) -> tuple[str, str, str]:
    default = one.default if isinstance(one.default, str) else json.dumps(one.default)
    return f"method.{one.key}", default, one.comment
