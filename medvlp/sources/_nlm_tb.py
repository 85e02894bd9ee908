"""Shenzhen and Montgomery, the two tuberculosis sets of the National Library of Medicine: images and short readings.

Guarantee: the last digit of the file name decides the label; sex and age are read from the reading only where it says
them, and what remains is the report.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from medvlp.errors import UserError
from medvlp.sources._csv import read_text
from medvlp.sources._files import index_files, require_files
from medvlp.sources._values import age_years, sex
from medvlp.sources.base import Source
from medvlp.types import ABSENT, PRESENT, ImageRef, Mask, Study

TUBERCULOSIS, NORMAL = "Tuberculosis", "Normal"
_GAP = r"[\s,.;:\uff0c\uff1b\uff1a\u3001\u3002]*"
"""Blanks and punctuation, also that of Chinese text."""
_SEX = re.compile(
    rf"(?:(?:patient'?s?\s*)?sex\s*:\s*(f|m|o|u)(?![a-z])|(female|femal|male|mal)(?![a-z])){_GAP}", re.IGNORECASE
)
_AGE = re.compile(
    r"(?:(?:patient'?s?\s*)?age\s*:\s*)?(\d{1,3})\s*-?\s*(years?|yrs?|ys|y|months?|mos?|m|weeks?|w|days?|d)(?![a-z])"
    rf"(?!\s*ago)(?:\s*-?\s*old)?{_GAP}",
    re.IGNORECASE,
)


def parse_reading(text: str) -> tuple[str | None, float | None, str]:
    """Return sex (M, F or None), age in years (or None) and the rest of a clinical reading.

    A reading starts with sex and age in many spellings: `male 45yrs`, `Female, 5 months`, `Patient's Sex: F` above
    `Patient's Age: 024Y`. Only what stands at the start is read, each once: a number of years within the findings is
    not the patient's age.
    """
    rest = text.strip()
    sex_match = age_match = None
    while True:
        if sex_match is None and (sex_match := _SEX.match(rest)):
            rest = rest[sex_match.end() :]
        elif age_match is None and (age_match := _AGE.match(rest)):
            rest = rest[age_match.end() :]
        else:
            break
    letter = (sex_match[1] or sex_match[2])[0] if sex_match else ""
    years = age_years(f"{age_match[1]}{age_match[2][0]}") if age_match else None
    return sex(letter), years, "\n".join(line.strip() for line in rest.splitlines() if line.strip())


class NlmTuberculosis(Source):
    """Images `<prefix>_<number>_<0 or 1>.png` in `CXR_png`, readings of the same names in `ClinicalReadings`."""

    folder: ClassVar[str]
    """Folder of the data set; its content may also lie in the root."""
    prefix: ClassVar[str]

    @abstractmethod
    def masks(self, base: str, names: Mapping[str, str]) -> dict[str, tuple[Mask, ...]]:
        """Return the masks by image id; `base` is empty or the folder with a slash, `names` the images by id."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per image, in the order of their numbers.

        Raises:
            UserError: There are no images, or a full edition has other counts than the card.
        """
        self.problems, self.counts = [], Counter()
        base = f"{self.folder}/" if (self.root / self.folder).is_dir() else ""
        images = index_files(self, [f"{base}CXR_png/*"], (".png",))
        require_files(self, images, f"{self.folder}/CXR_png/")
        readings = index_files(self, [f"{base}ClinicalReadings/*"], (".txt",))
        names = self._names(images)
        masks = self.masks(base, names)
        found = {"tuberculosis": sum(name.endswith("_1") for name in names), "masks": len(masks)}
        found |= {"images": len(names), "normal": len(names) - found["tuberculosis"]}
        self.check_counts(found, "images")
        self.counts["images with masks"] = len(masks)
        for name, path in sorted(names.items()):
            yield self._study(name, path, readings.get(name), masks.get(name, ()))
        for name in sorted(set(readings) - set(images)):
            fix = "Download the image, or remove the reading."
            self.problem(readings[name], "reading without image", fix, name)

    def _names(self, images: Mapping[str, str]) -> dict[str, str]:
        """Return the images whose name is sound and whose number occurs once."""
        pattern = re.compile(rf"{self.prefix}_(\d+)_([01])")
        numbers = Counter(match[1] for name in images if (match := pattern.fullmatch(name)))
        kept = {}
        for name, path in images.items():
            match = pattern.fullmatch(name)
            if match is None:
                reason = f"the file name is not {self.prefix}_<number>_<0 or 1>.png"
                self.problem(path, reason, "Give the file its original name.", name)
            elif numbers[match[1]] > 1:
                reason = f"number {match[1]} is there as normal and as tuberculosis"
                self.problem(path, reason, "Keep the file of the original archive.", name)
            else:
                kept[name] = path
        return kept

    def _study(self, name: str, path: str, reading: str | None, masks: tuple[Mask, ...]) -> Study:
        label = name[-1] == "1"
        found_sex, age, text = self._reading(name, reading) if reading else (None, None, "")
        self.counts["images without a reading"] += reading is None
        if text:
            self.counts["readings that contradict the file name"] += (text.lower().strip(" .") == "normal") == label
        return Study(
            study_id=name,
            patient_id=name[:-2],
            images=(ImageRef(name, path, self.card.modality),),
            report=f"FINDINGS: {text}" if text else None,
            labels={TUBERCULOSIS: PRESENT if label else ABSENT, NORMAL: ABSENT if label else PRESENT},
            masks=masks,
            language="en" if text else None,
            age=age,
            sex=found_sex,
        )

    def _reading(self, name: str, path: str) -> tuple[str | None, float | None, str]:
        try:
            found_sex, age, text = parse_reading(read_text(self.root / Path(path)))
        except UserError as error:
            fix = "Download the reading again; the image is kept without it."
            self.problem(path, error.what, fix, name)
            return None, None, ""
        self.counts["sexes not given"] += found_sex is None
        self.counts["ages not given"] += age is None
        return found_sex, age, text
