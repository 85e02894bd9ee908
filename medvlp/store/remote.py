"""Stores that are not on a local disk: `s3://bucket/folder`, and every other file system that fsspec knows.

Guarantee: a store that is only half there is never opened as a whole one; what goes wrong between here and there (no
such bucket, no credentials, no connection) is a `UserError`. A local path needs none of the libraries for this.

Tables and JSON are read through fsspec; arrays through tensorstore where it knows the system (S3), else through zarr.
Where and as whom is said by the system's own environment variables: for S3 `AWS_ENDPOINT_URL`, `AWS_REGION`,
`AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or a profile in `~/.aws`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from medvlp.errors import UserError

COPYING = ".copying.json"
"""Lies in a store that is being copied to where it is, until all of it is there."""

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+):/+(?P<rest>.*)", re.IGNORECASE)
_LIBRARIES = ("aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "s3fs")


def place(path: str | Path) -> Path:
    """Return where a store is: a path, or an object that is used like one for what is not on a local disk.

    Args:
        path: A path or URL. A URL that was a `Path` for a while (in a configuration, say) has lost one of its two
            slashes, and is understood as well.

    Raises:
        UserError: The kind of URL is not known, or the library for it is not installed.
    """
    found = _URL.fullmatch(str(path))
    if found is None:
        return Path(path)
    scheme, rest = found["scheme"].lower(), found["rest"]
    if scheme in ("file", "local"):
        return Path("/" + rest)
    url = f"{scheme}://{rest.rstrip('/')}"
    with reaching(url):
        from upath import UPath

        try:
            remote = UPath(url)
            _ = remote.fs  # finds out whether the library for it is there
        except ValueError as error:
            raise UserError(f"{error}.", url, "Write a path, or a URL such as s3://bucket/folder.") from error
        return cast(Path, remote)


def is_remote(path: Path) -> bool:
    """Tell whether a place is not on a local disk."""
    return not isinstance(path, Path)


@contextmanager
def reaching(where: Path | str) -> Iterator[None]:
    """Turn what goes wrong on the way to a remote file system into `UserError`.

    A missing file passes through, and so does everything about a local one.
    """
    if isinstance(where, Path):
        yield
        return
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"A library is missing: {error}.", where, "pip install 'medvlp[s3]'") from error
    except FileNotFoundError as error:
        if "bucket does not exist" not in str(error):
            raise
        raise UserError(
            "The bucket does not exist.", where, "Make it, or correct the name or AWS_ENDPOINT_URL."
        ) from error
    except Exception as error:
        known = isinstance(error, OSError) or type(error).__module__.split(".")[0] in _LIBRARIES
        if not known:
            raise
        raise _mistake(error, where) from error


def _mistake(error: Exception, where: object) -> UserError:
    name = type(error).__name__
    if isinstance(error, PermissionError):
        return UserError(f"Access is denied: {error}.", where, "Check the credentials and what they may do here.")
    if "Credentials" in name or "Token" in name:
        return UserError(
            f"There are no usable credentials: {error}.",
            where,
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
        )
    if "Connect" in name or "Timeout" in name or isinstance(error, ConnectionError | TimeoutError):
        return UserError(
            f"The object store cannot be reached: {error}.", where, "Check the network and AWS_ENDPOINT_URL."
        )
    return UserError(f"The file system refused: {error}.", where, "Check the name, the credentials and the network.")


def kvstore(array: Path) -> dict[str, Any] | None:
    """Return where an array is in tensorstore's words; None where tensorstore does not know the file system."""
    if not is_remote(array):
        return {"driver": "file", "path": str(array.resolve())}
    remote = cast(Any, array)
    if remote.protocol not in ("s3", "s3a"):
        return None
    bucket, _, key = remote.path.partition("/")
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": f"{key}/"}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        spec |= {"endpoint": endpoint, "aws_region": region or "us-east-1"}
    elif region:
        spec["aws_region"] = region
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        spec["aws_credentials"] = {"type": "environment"}
    return spec


def read_bytes(file: Path) -> bytes:
    """Return the content of a file.

    Raises:
        FileNotFoundError: It does not exist.
        UserError: It cannot be reached.
    """
    with reaching(file):
        return file.read_bytes()


def sizes(folder: Path) -> dict[str, int]:
    """Return the size in bytes of every file below a folder, by its path relative to the folder.

    Raises:
        UserError: The folder cannot be reached. One that does not exist has no files.
    """
    if not is_remote(folder):
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    remote = cast(Any, folder)
    with reaching(folder):
        try:
            remote.fs.invalidate_cache()
            found = remote.fs.find(remote.path, detail=True)
        except FileNotFoundError as error:
            if "bucket does not exist" in str(error):
                raise
            return {}
    start = len(remote.path.rstrip("/")) + 1
    return {name[start:]: int(facts["size"]) for name, facts in found.items() if facts["type"] == "file"}
