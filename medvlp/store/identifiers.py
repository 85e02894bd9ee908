"""Personal ids, dates and texts of a data set, replaced before anything of it reaches a store.

Guarantee: with `ids: hash`, patient, study and image ids of a store are keyed hashes (HMAC-SHA256, 20 hex digits) that
nobody can turn back without the salt; the same id gives the same hash in every store made with the same salt, so leaks
between stores stay visible. File paths are left out. The salt lies outside of store and data; beside it, readable by
its owner alone, a key file names the original of every hash and every left-out file, so that a bad file can be found.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import hmac
import io
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medvlp.config.identifiers import IdentifierConfig
from medvlp.errors import UserError
from medvlp.sources.base import Problem, Source
from medvlp.sources.cards import Card
from medvlp.store.files import file_sha256, write_atomic
from medvlp.text.deidentify import deidentify, presidio
from medvlp.text.known_names import without_known
from medvlp.types import UNKNOWN_PATIENT, ImageRef, Question, Study

SALT_BYTES = 32
HASH_DIGITS = 20
OLDEST_AGE = 90
"""Ages above are personal, and become this one."""


@dataclass
class Pseudonyms:
    """Replaces ids, and remembers what it replaced for the key file."""

    salt: bytes
    originals: dict[tuple[str, str], str] = field(default_factory=dict)
    """(kind, hash) -> original."""

    def __call__(self, kind: str, original: str) -> str:
        """Return the hash of an id; `kind` is patient, study or image."""
        if kind == "patient" and original == UNKNOWN_PATIENT:
            return original
        digest = hmac.new(self.salt, f"{kind}/{original}".encode(), hashlib.sha256).hexdigest()[:HASH_DIGITS]
        self.originals[kind, digest] = original
        return digest


class Protection:
    """What is done to the studies of one data set.

    Args:
        config: What the user asks for.
        card: Says whether the ids of the data set are personal.
        folders: Store and raw data set, in which the salt must not lie.

    Raises:
        UserError: The salt cannot be read or made, or lies in the wrong place, or Presidio is asked for and missing.
    """

    def __init__(self, config: IdentifierConfig, card: Card, folders: Sequence[Path]) -> None:
        personal = card.identifiers == "personal"
        self.hashes = config.ids == "hash" or (config.ids == "auto" and personal)
        self.text = config.text if config.text != "auto" else "rules" if self.hashes else "none"
        self.path = (config.salt or default_salt()).expanduser()
        self.pseudonyms = Pseudonyms(read_salt(self.path, folders) if self.hashes else b"")
        self.clean: Callable[[str], str] = presidio(config.model) if config.model is not None else str

    @property
    def settings(self) -> dict[str, Any]:
        """What a store made with this protection records; no secret."""
        salt = hashlib.sha256(self.pseudonyms.salt).hexdigest()[:16] if self.hashes else None
        return {"ids": "hash" if self.hashes else "keep", "salt_sha256": salt, "text": self.text}

    def options(self, source: Source) -> dict[str, Any]:
        """Return the options of a source as a store records them: a file by its hash and, if ids are kept, its name."""
        recorded = {}
        for name, value in source.options.items():
            files = [Path(value), source.root / value] if isinstance(value, str) and value else []
            file = next((file for file in files if file.is_file()), None)
            recorded[name] = value if file is None else {"sha256": file_sha256(file)}
            if file is not None and not self.hashes:
                recorded[name]["name"] = file.name
        return recorded

    def study(self, study: Study) -> Study:
        """Return the study as it may be kept."""
        report = study.report
        known = (*study.identifiers, study.patient_id, study.study_id) if self.hashes else study.identifiers
        known = tuple(name for name in known if name != UNKNOWN_PATIENT)
        if report is not None and self.text != "none":
            report = self.clean(deidentify(report, known=known, study_date=study.date))
        if self.text != "none":
            study = dataclasses.replace(study, questions=tuple(self._question(one, known) for one in study.questions))
        if not self.hashes:
            return dataclasses.replace(study, report=report, identifiers=())
        images = {image.image_id for image in study.images}
        return dataclasses.replace(
            study,
            study_id=self.pseudonyms("study", study.study_id),
            patient_id=self.pseudonyms("patient", study.patient_id),
            images=tuple(self._image(image) for image in study.images),
            report=report,
            boxes=tuple(
                dataclasses.replace(self._of_image(box), label=without_known(box.label, known)) for box in study.boxes
            ),
            lesions=tuple(self._of_image(lesion) for lesion in study.lesions),
            masks=tuple(dataclasses.replace(self._of_image(mask), path=None) for mask in study.masks),
            questions=tuple(
                dataclasses.replace(
                    self._of_image(one),
                    question_id=self.pseudonyms("question", one.question_id),
                    group=one.group and self.pseudonyms("group", one.group),
                )
                for one in study.questions
            ),
            # An attribute that is the id of an image names that image in the store, too.
            attributes={
                name: self.pseudonyms("image", value) if value in images else without_known(value, known)
                for name, value in study.attributes.items()
            },
            age=None if study.age is None else min(study.age, float(OLDEST_AGE)),
            identifiers=(),
        )

    def _question(self, question: Question, known: Sequence[str]) -> Question:
        text, answer = (self.clean(deidentify(part, known=known)) for part in (question.text, question.answer))
        return dataclasses.replace(question, text=text, answer=answer)

    def _image(self, image: ImageRef) -> ImageRef:
        return dataclasses.replace(image, image_id=self.pseudonyms("image", image.image_id), path="", files=())

    def _of_image(self, part: Any) -> Any:
        return dataclasses.replace(part, image_id=self.pseudonyms("image", part.image_id))

    def problem(self, problem: Problem) -> Problem:
        """Return the problem as it may be kept: the hash of its file and study, and no value that was found."""
        if not self.hashes:
            return problem
        return Problem(
            path=f"file {self.pseudonyms('file', problem.path)}",
            reason=self.scrub(problem.reason),
            fix=self.scrub(problem.fix),
            study_id=None if problem.study_id is None else self.pseudonyms("study", problem.study_id),
        )

    def scrub(self, message: str) -> str:
        """Return a message as it may be kept."""
        return without_values(message) if self.hashes else message

    def write_key(self, dataset: str, store_hash: str, paths: Mapping[str, str]) -> Path | None:
        """Write the key file beside the salt; return it, or None where nothing was replaced.

        Args:
            dataset: Name of the data set.
            store_hash: Hash of the store, which names the file.
            paths: Hash of an image -> its file relative to the root.
        """
        if not self.hashes:
            return None
        folder = self.path.with_name(f"{self.path.name}.keys")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["kind", "hash", "original", "path"])
        for (kind, digest), original in sorted(self.pseudonyms.originals.items()):
            writer.writerow([kind, digest, original, paths.get(digest, "") if kind == "image" else ""])
        file = folder / f"{dataset}-{store_hash[:12]}.csv"
        write_atomic(file, text.getvalue().encode(), folder)
        file.chmod(0o600)
        return file


def without_values(message: str) -> str:
    """Return a message without quoted values, numbers of four digits or more, and paths."""
    message = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", message)
    message = re.sub(r"(?<!\w)[\w.^-]*(?:/[\w.^-]+)+", "...", message)
    message = re.sub(r"[\w.^-]*\.(?:dcm|dicom|png|jpe?g|nii|gz|csv|txt|json)\b", "...", message, flags=re.IGNORECASE)
    message = re.sub(r"\b\S+\^\S*", "...", message)
    return re.sub(r"\b[\w-]*\d{4,}[\w-]*\b", "...", message)


def default_salt() -> Path:
    """Return where a user's salt lies: MEDVLP_SALT, else the user's configuration folder."""
    named = os.environ.get("MEDVLP_SALT")
    base = Path(os.environ.get("XDG_CONFIG_HOME", "~/.config")).expanduser()
    return Path(named) if named else base / "medvlp" / "salt"


def read_salt(path: Path, folders: Sequence[Path]) -> bytes:
    """Return the salt of a file, which is made where it is missing.

    Raises:
        UserError: It lies in one of `folders`, cannot be read or made, or is too short to be secret.
    """
    own = path.resolve()
    for folder in folders:
        if own.is_relative_to(folder.resolve()):
            raise UserError(
                "The salt must lie outside of store and data set: who has both can turn hashes back.",
                path,
                "Choose another file for identifiers.salt.",
            )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(SALT_BYTES) + "\n")
        salt = path.read_bytes().strip()
    except OSError as error:
        raise UserError(
            f"The salt cannot be read or made: {error.strerror}.", path, "Name a file of yours in identifiers.salt."
        ) from None
    if len(salt) < SALT_BYTES:
        raise UserError(
            f"The salt has {len(salt)} characters; {SALT_BYTES} are needed.", path, "Remove the file; it is made anew."
        )
    return salt
