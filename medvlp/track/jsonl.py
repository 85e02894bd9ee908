"""The local curve: one JSON line per log call.

Guarantee: every line is flushed when it is written, a torn last line is cut off on reopening, and after a resume no
step stands twice. Numbers that are not finite are written as null, so that the file stays JSON.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any, TextIO


class JsonLines:
    """Appends metrics to a file.

    Args:
        path: The file; made if missing.
        resume_step: Lines of later steps are removed first. None keeps all.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_lines(path) if resume_step is None or line["step"] <= resume_step]
        partial = path.with_name(path.name + ".part")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        self._file: TextIO = path.open("a", encoding="utf-8")

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Append one line: step, Unix time in seconds, the metrics."""
        finite = {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3)} | finite) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file up to the first torn one; none where there is no file."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            break
        lines.append(line)
    return lines
