"""The thorax phantom as CT: volumes that medvlp makes itself, with label maps, lesions, labels and reports.

Guarantee: labels of a study are what is in the volume; masks are those of the option, organs with or without findings.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from medvlp.errors import UserError
from medvlp.sources._label_maps import label_map_masks, values_of
from medvlp.sources.base import Source
from medvlp.types import ImageRef, Intensity, Lesion, Study, VolumeFacts

_AGAIN = "Write the phantom again, in another folder."


class PhantomCt(Source):
    """What `medvlp phantom write --layout phantom_ct` wrote; see `data_cards/phantom_ct.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield studies in the order of their number; rows that cannot be used go to `problems`.

        Raises:
            UserError: The folder holds no such phantom, or one of another format.
        """
        self.problems, self.counts = [], Counter()
        try:
            marker = json.loads((self.root / "phantom_ct.json").read_text(encoding="utf-8"))
            lines = (self.root / "studies.jsonl").read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            what = "The folder holds no CT phantom (no phantom_ct.json with a studies.jsonl)."
            raise UserError(what, self.root, _AGAIN) from None
        if marker.get("format") != self.card.adapter["format"]:
            what = f"The phantom has format {marker.get('format')}, this version reads {self.card.adapter['format']}."
            raise UserError(what, self.root, _AGAIN)
        seen: set[str] = set()
        for number, line in enumerate(lines, 1):
            where = f"studies.jsonl:{number}"
            try:
                study = self._study(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                self.problem(where, f"the row cannot be read: {error!r}", _AGAIN)
                continue
            if study.study_id in seen:
                self.problem(where, "the study id occurs twice", _AGAIN, study.study_id)
                continue
            seen.add(study.study_id)
            path = study.images[0].path
            if not (self.root / path).is_file():
                self.problem(path, "the volume is missing", _AGAIN, study.study_id)
                continue
            yield study

    def _study(self, row: dict[str, Any]) -> Study:
        """Return the study of a row.

        Raises:
            ValueError: Its labels are others than the card's.
        """
        if set(row["labels"]) != set(self.card.labels):
            raise ValueError(f"labels {sorted(row['labels'])}")
        name = str(row["study_id"])
        only = self.options["masks"] == "organs"
        named = self.card.structures[: self.card.adapter["organs"]] if only else self.card.structures
        facts = VolumeFacts(Intensity.HU, label_values=values_of(named))
        return Study(
            study_id=name,
            patient_id=str(row["patient_id"]),
            images=(ImageRef(name, f"volumes/{name}.nii.gz", "CT", facts=facts),),
            report=row["report"],
            labels={label: float(row["labels"][label]) for label in self.card.labels},
            lesions=tuple(
                Lesion(name, lesion["label"], tuple(lesion["centre_mm"]), lesion["diameter_mm"])
                for lesion in row["lesions"]
            ),
            masks=label_map_masks(name, f"{'organs' if only else 'labels'}/{name}.nii.gz", named),
            language=self.card.language,
            age=float(row["age"]),
            sex=row["sex"],
            split=row["split"],
        )
