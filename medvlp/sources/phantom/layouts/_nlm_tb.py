"""What the raw layouts of Shenzhen and Montgomery share.

Guarantee: readings are spelt in turn in several ways, as in the released files.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from medvlp.sources.phantom.examples import Example, ExampleImage
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import PRESENT, ImageRef, Mask, Study

if TYPE_CHECKING:
    from jaxtyping import Bool

_SPELLINGS = (
    "{word} {age}yrs\n\n{text}\n",
    "{Word}, {age} years old\n{text}",
    "{word}{age}yrs\n{text}\n",
    "Patient's Sex: {letter}\nPatient's Age: {age:03d}Y\n{text}\n",
    "{Word}  {age}y, {text}\n",
)


class NlmTuberculosisLayout(Layout):
    """One image per examination: the frontal one; label and number make its name."""

    needs = "lungs"
    folder: ClassVar[str]
    prefix: ClassVar[str]

    @abstractmethod
    def put_masks(self, name: str, image: ExampleImage) -> tuple[Mask, ...]:
        """Write the masks of an image; return them as the adapter gives them."""

    def lungs(self, image: ExampleImage) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
        """Return the patient's left and right lung."""
        assert image.lungs is not None
        return image.lungs

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies in the order of their ids."""
        return sorted((self._study(example) for example in examples), key=lambda study: study.study_id)

    def _study(self, example: Example) -> Study:
        front = next(image for image in example.images if image.view != "LATERAL")
        labels = self.labels(example)
        patient = f"{self.prefix}_{example.number + 1:04d}"
        name = f"{patient}_{int(labels['Tuberculosis'])}"
        text = " ".join(example.caption.split()) if labels["Tuberculosis"] == PRESENT else "normal"
        word = "male" if example.sex == "M" else "female"
        reading = _SPELLINGS[example.number % len(_SPELLINGS)].format(
            word=word, Word=word.capitalize(), letter=example.sex, age=example.age, text=text
        )
        path = f"{self.folder}/CXR_png/{name}.png"
        self.put_image(path, front.pixels)
        self.put_text(f"{self.folder}/ClinicalReadings/{name}.txt", reading)
        return Study(
            study_id=name,
            patient_id=patient,
            images=(ImageRef(name, path, "CR"),),
            report=f"FINDINGS: {text}",
            labels=labels,
            masks=self.put_masks(name, front),
            language="en",
            age=float(example.age),
            sex=example.sex,
        )

    def put_mask(self, path: str, inside: np.ndarray) -> None:
        """Write a mask as a PNG of 0 and 255."""
        self.put_image(path, inside.astype(np.uint8) * 255)
