"""The checks of `medvlp doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table; `result` is PASS, WARN or FAIL."""

    name: str
    result: str
    found: str
    fix: str = ""


def run_checks() -> list[Check]:
    """Run all checks; one that breaks is itself a failure."""
    checks: list[Check] = []
    groups: list[Callable[[], Iterator[Check]]] = [_python, _libraries, _decoders, _devices, _machine, _shipped]
    for group in groups:
        try:
            checks.extend(group())
        except Exception as error:  # a broken library may raise anything, and the other checks must still be shown
            name = group.__name__.strip("_")
            checks.append(
                Check(name, "FAIL", f"{type(error).__name__}: {error}", "Install medvlp again in a fresh environment.")
            )
    return checks


def _python() -> Iterator[Check]:
    version = platform.python_version_tuple()
    right = (3, 11) <= (int(version[0]), int(version[1])) <= (3, 13)
    yield Check(
        "Python", "PASS" if right else "FAIL", platform.python_version(), "" if right else "Use Python 3.11 to 3.13."
    )


def _libraries() -> Iterator[Check]:
    from packaging.requirements import Requirement

    for text in importlib.metadata.requires("medvlp") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(requirement.name, "FAIL", "not installed", f"pip install '{requirement}'")
            continue
        right = requirement.specifier.contains(re.sub(r"\+.*", "", version), prereleases=True)
        yield Check(
            requirement.name, "PASS" if right else "FAIL", version, "" if right else f"pip install '{requirement}'"
        )


def _decoders() -> Iterator[Check]:
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    names = {
        "1.2.840.10008.1.2.1": "uncompressed",
        "1.2.840.10008.1.2.5": "RLE",
        "1.2.840.10008.1.2.4.50": "JPEG baseline",
        "1.2.840.10008.1.2.4.51": "JPEG extended",
        "1.2.840.10008.1.2.4.70": "JPEG lossless",
        "1.2.840.10008.1.2.4.80": "JPEG-LS",
        "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
        "1.2.840.10008.1.2.4.91": "JPEG 2000",
    }
    broken = [name for uid, name in names.items() if not get_decoder(UID(uid)).is_available]
    found = "all of " + ", ".join(names.values()) if not broken else "missing: " + ", ".join(broken)
    yield Check(
        "DICOM decoders",
        "FAIL" if broken else "PASS",
        found,
        "pip install pylibjpeg-openjpeg python-gdcm" if broken else "",
    )


def _devices() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found = f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        yield Check("GPU", "PASS", found)
    else:
        yield Check("GPU", "WARN", "none", "Training runs on the CPU: right for trials, slow for real data.")


def _machine() -> Iterator[Check]:
    import psutil

    from medvlp.cluster import cpu_count

    yield Check("CPU cores", "PASS", str(cpu_count()))
    memory = psutil.virtual_memory().available / 2**30
    yield Check(
        "free memory",
        "PASS" if memory >= 4 else "WARN",
        f"{memory:.1f} GiB",
        "" if memory >= 4 else "Close other programs.",
    )
    disk = shutil.disk_usage(Path.cwd()).free / 2**30
    yield Check(
        "free disk here",
        "PASS" if disk >= 5 else "WARN",
        f"{disk:.0f} GiB",
        "" if disk >= 5 else "Free space for stores.",
    )
    writable = os.access(Path.cwd(), os.W_OK)
    yield Check(
        "this folder",
        "PASS" if writable else "WARN",
        "writable" if writable else "read-only",
        "" if writable else "Change to another.",
    )


def _shipped() -> Iterator[Check]:
    from medvlp.config.load import check_config
    from medvlp.config.resources import shipped
    from medvlp.errors import UserError

    recipes = [file for kind in ("pretrain", "finetune") for file in shipped(f"configs/{kind}").glob("*.yaml")]
    files = [*recipes, *shipped("benchmarks").glob("*/*.yaml")]
    wrong = []
    for file in files:
        try:
            check_config(file)
        except UserError as error:
            wrong.append(f"{file.name}: {error.what}")
    right = bool(files) and not wrong
    yield Check(
        "shipped configs",
        "PASS" if right else "FAIL",
        "; ".join(wrong) or f"{len(files)} files",
        "" if right else "Install medvlp again.",
    )
