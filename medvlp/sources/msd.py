"""Medical Segmentation Decathlon: one of ten tasks, each a folder with its `dataset.json`.

Guarantee: the lists of `dataset.json` decide what is a case; the names that it gives to the values must mean what the
card says for the task, so that parts of a tumour are never permuted. Of a file with several channels one is read, and
its name is recorded. Cases come in the order of split and number.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from medvlp.errors import UserError, nearest
from medvlp.sources._files import read_json
from medvlp.sources._label_maps import case_of, check_label_names, label_map_masks, values_of
from medvlp.sources._volumes import nifti_files
from medvlp.sources.base import Source
from medvlp.types import ImageRef, Intensity, Study, VolumeFacts

LIST = "dataset.json"


class Msd(Source):
    """One task, or the folder that holds several; see `data_cards/msd.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per case of the task.

        Raises:
            UserError: The task is not named or not there, `dataset.json` is missing, broken or gives values or
                channels other meanings, or a full edition has other counts than the card.
        """
        self.problems, self.counts = [], Counter()
        task, folder = self._task()
        self._facts: Mapping[str, Any] = self.card.adapter["tasks"][task]
        content = read_json(folder / LIST) if (folder / LIST).is_file() else None
        if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
            what = f"{LIST} is missing or has no mapping `labels`."
            raise UserError(what, folder / LIST, "Unpack the whole archive of the task.")
        for key in ("training", "test"):
            if not isinstance(content.get(key) or [], list):
                raise UserError(
                    f"`{key}` of {LIST} is no list.", folder / LIST, "Unpack the archive of the task again."
                )
        check_label_names(content["labels"], self._facts["patterns"], folder / LIST)
        channel, name = self._channel(content, folder / LIST)
        training, test = self._entries(content, "training"), self._entries(content, "test")
        self._count(task, content, training, test)
        inside = folder.relative_to(self.root).as_posix()
        parts = ("imagesTr", "labelsTr", "imagesTs")
        files = {part: set(nifti_files(self, [f"{inside}/{part}/*"]).values()) for part in parts}
        listed = set()
        for split, entries in (("train", training), ("test", test)):
            for image, labels in sorted(entries, key=lambda entry: _order(entry[0])):
                paths = [self._path(folder, part) for part in (image, labels) if part]
                listed.update(paths)
                study = self._study(paths, split, files, channel, name)
                if study is not None:
                    yield study
        for path in sorted(set().union(*files.values()) - listed):
            self.problem(path, f"the file is not in {LIST}", "Unpack the archive again, or remove the file.")

    def _task(self) -> tuple[str, Path]:
        """Return the task and its folder: the one that the options name, or the only one that is there."""
        known, task = self.card.adapter["tasks"], self.options["task"]
        here = {name: self.root / name for name in known if (self.root / name / LIST).is_file()}
        if (self.root / LIST).is_file() and self.root.resolve().name in known:
            here = {self.root.resolve().name: self.root}
        if task is None and len(here) == 1:
            return next(iter(here.items()))
        if task is None:
            what = (
                "The folder holds several tasks." if here else "The folder holds no task that can be told by its name."
            )
            raise UserError(what, self.root, f"Set options.task to one of {', '.join(here or known)}.")
        folder = here.get(task, self.root if (self.root / LIST).is_file() and not here else None)
        if folder is None:
            raise UserError(f"There is no {task}/{LIST}.", self.root, "Unpack the archive of the task into the root.")
        return str(task), folder

    def _channel(self, content: Mapping[str, Any], where: Path) -> tuple[int | None, str | None]:
        """Return number and name of the channel to read; None for files with three dimensions."""
        channels, wanted = list(self._facts["channels"]), self.options["channel"]
        given = content.get("modality")
        found = [str(value) for _, value in sorted(given.items())] if isinstance(given, dict) else []
        if len(found) != len(channels) or (
            len(channels) > 1 and any(a.lower() not in b.lower() for a, b in zip(channels, found, strict=True))
        ):
            what = f"The channels are {', '.join(found) or 'not given'}; the card says {', '.join(channels)}."
            raise UserError(what, where, "Use the original files of the task.")
        if wanted is not None and wanted not in channels:
            hint = nearest(str(wanted), channels)
            raise UserError(
                f"The task has no channel '{wanted}'.{hint}", where, f"Set options.channel to {' or '.join(channels)}."
            )
        if len(channels) == 1:
            return None, None
        number = 0 if wanted is None else channels.index(wanted)
        return number, channels[number]

    def _entries(self, content: Mapping[str, Any], key: str) -> list[tuple[str, str | None]]:
        entries: list[tuple[str, str | None]] = []
        for place, entry in enumerate(content.get(key) or []):
            image, labels = (entry.get("image"), entry.get("label")) if isinstance(entry, dict) else (entry, None)
            parts = PurePosixPath(str(image)).parts + PurePosixPath(str(labels or "")).parts
            if (
                not isinstance(image, str)
                or not isinstance(labels or "", str)
                or ".." in parts
                or str(image).startswith("/")
            ):
                self.problem(f"{LIST}: {key}[{place}]", "the entry names no file of the task", "Correct the entry.")
            elif not any(image == other for other, _ in entries):
                entries.append((image, labels))
            else:
                self.problem(f"{LIST}: {key}[{place}]", "the file is listed twice; the first is kept", "Remove one.")
        return entries

    def _path(self, folder: Path, entry: str) -> str:
        return (folder / PurePosixPath(entry)).relative_to(self.root).as_posix()

    def _study(
        self, paths: list[str], split: str, files: Mapping[str, set[str]], channel: int | None, name: str | None
    ) -> Study | None:
        image, labels = paths[0], paths[1] if len(paths) > 1 else None
        case = case_of(PurePosixPath(image).name)
        if image not in files["imagesTr"] | files["imagesTs"]:
            self.problem(LIST, f"{case} is listed, and there is no such volume", "Unpack the archive again.", case)
            return None
        if labels is not None and case_of(PurePosixPath(labels).name) != case:
            self.problem(image, f"the list gives {case} the label map of another case", "Correct the entry.", case)
            labels = None
        elif split == "train" and labels not in files["labelsTr"]:
            self.problem(image, "the volume has no label map", "Unpack the archive again.", case)
            labels = None
        ct = self._facts["modality"] == "CT"
        meaning = Intensity.HU if ct else Intensity.STORED
        facts = VolumeFacts(meaning, channel=channel, label_values=values_of(self._facts["structures"]))
        return Study(
            study_id=case,
            patient_id=case,
            images=(ImageRef(case, image, "CT" if ct else "MR", facts=facts),),
            masks=() if labels is None else label_map_masks(case, labels, self._facts["structures"]),
            attributes={} if name is None else {"channel": name},
            split=split,
        )

    def _count(self, task: str, content: Mapping[str, Any], training: list[Any], test: list[Any]) -> None:
        self.check_counts({f"{task} training": len(training), f"{task} test": len(test)}, f"{task} training")
        for key, entries in (("numTraining", training), ("numTest", test)):
            if content.get(key) not in (None, len(entries)):
                self.counts[f"{key} is {content[key]}, and so many cases are listed"] = len(entries)


def _order(path: str) -> tuple[str, int]:
    """Order `spleen_2` before `spleen_10`."""
    case = case_of(PurePosixPath(path).name)
    match = re.search(r"(\d+)$", case)
    return case.rstrip("0123456789"), int(match[1]) if match else 0
