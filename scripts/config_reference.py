"""Write docs/reference/config.md from the schema, so that the page is always what the code accepts."""

from __future__ import annotations

import typing
from pathlib import Path

from medvlp.config.base import Config
from medvlp.config.schema import KINDS

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "config.md"

HEAD = """# Configuration keys

Made from the schema by `python scripts/config_reference.py`. A file names its `kind`; `base: other.yaml` takes another
file as its start (one level); `key.path=value` on the command line comes last. `medvlp config check FILE` lists every
mistake, `medvlp config show FILE` prints the resolved values. What may stand under `method.objectives` and
`method.options` is what the method's own file in `configs/methods` declares.
"""


def nested(annotation: object) -> list[type[Config]]:
    """Return the configuration classes inside an annotation: several where a section is of one of several kinds."""
    if isinstance(annotation, type) and not typing.get_origin(annotation):
        return [annotation] if issubclass(annotation, Config) else []
    return [found for part in typing.get_args(annotation) for found in nested(part)]


def choices(annotation: object) -> list[str]:
    """Return the values that an annotation with a `Literal` allows."""
    if typing.get_origin(annotation) is typing.Literal:
        return [str(value) for value in typing.get_args(annotation)]
    return [value for part in typing.get_args(annotation) for value in choices(part)]


def rows(schema: type[Config], prefix: str = "") -> list[str]:
    """Return the table rows of a schema, nested keys with their whole path."""
    lines = []
    for name, field in schema.model_fields.items():
        inner = nested(field.annotation)
        repeated = bool(inner) and typing.get_origin(field.annotation) is tuple
        text = field.description or ((inner[0].__doc__ or "").split("\n")[0] if inner else "")
        allowed = [] if name == "kind" else choices(field.annotation)
        meaning = " ".join(filter(None, [text, f"One of {', '.join(allowed)}." if allowed else ""]))
        shown = "" if inner else f"`{field.get_default(call_default_factory=True)}`"
        default = "required" if field.is_required() else shown
        lines.append(f"| `{prefix}{name}` | {default} | {meaning} |")
        for number, one in enumerate(inner):
            if number:
                kind = choices(one.model_fields["kind"].annotation)[0]
                lines.append(f"| `{prefix}{name}` |  | **Of kind {kind}**: {(one.__doc__ or '').splitlines()[0]} |")
            lines += rows(one, f"{prefix}{name}{'[]' if repeated else ''}.")
    return lines


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for kind, schema in KINDS.items():
        about = (schema.__doc__ or "").split("\n")[0]
        parts.append(f"\n## `kind: {kind}`\n\n{about}\n\n| key | default | meaning |\n|---|---|---|\n")
        parts.append("\n".join(rows(schema)) + "\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
