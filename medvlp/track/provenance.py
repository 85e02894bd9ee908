"""What ran: git hash, versions, machine type. Recorded in checkpoints, models, benchmark results and MLflow.

Guarantee: no user name, no host name, no path.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import medvlp

PACKAGES = ("torch", "timm", "transformers", "numpy", "opencv-python-headless", "tensorstore", "scikit-learn")


def git_hash() -> str | None:
    """Return the commit that medvlp runs from, with `+changes` if files differ; None outside a checkout."""
    root = Path(medvlp.__file__).parent.parent
    if not (root / ".git").exists():  # a wheel inside somebody else's repository has none of its own
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def run_record() -> dict[str, Any]:
    """Return git hash (or None), versions of medvlp and of the packages that decide numbers, kind of machine."""
    return {
        "git": git_hash(),
        "versions": {"medvlp": medvlp.__version__, "python": platform.python_version()} | _versions(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.strip()
