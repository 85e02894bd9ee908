"""Renders a template into one self-contained file and writes it atomically.

Guarantee: `write_page` leaves either the old file or the whole new one; pages hold no link to another file.
"""

from __future__ import annotations

import base64
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.errors import UserError
from medvlp.html import numbers

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8

FILTERS = ("breakable", "decimal", "signed", "interval", "p_value", "count", "percent")


def render_page(package: str, template: str, **context: Any) -> str:
    """Render `templates/<template>` of a package; it may extend `page.html.j2` and import `macros.html.j2` of this one.

    Args:
        package: Package with a `templates` folder, e.g. `medvlp.bench`.
        template: File name in that folder.
        **context: What the template reads. A name that the template needs and that is missing raises.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package), jinja2.PackageLoader("medvlp.html")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({name: getattr(numbers, name) for name in FILTERS})
    return environment.get_template(template).render(**context)


def write_page(html: Path, text: str) -> None:
    """Write a page atomically: to a temporary file beside it, then in one step to its name.

    Raises:
        UserError: The folder cannot be written to, or the disk is full.
    """
    html = Path(html)
    temporary = None
    try:
        html.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=html.parent, prefix=f".{html.name}.", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(html)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise UserError(
            f"The page cannot be written: {error.strerror or error}.",
            html,
            "Choose a folder with space that you may write to.",
        ) from error


def data_uri(image: UInt8[np.ndarray, "h w *c"], quality: int = 82) -> str:
    """Return a grey or colour image as a JPEG data URI."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
