"""Who is examined: size, shape, age and sex of a patient, and how the patient stands in one study.

Guarantee: everything is drawn from named random streams of (seed, patient) or (seed, study), so that one patient
keeps the same anatomy in every study and no draw depends on the order of calls elsewhere.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

STUDIES_PER_BLOCK, PATIENTS_PER_BLOCK = 6, 4
_VISITS = ((3, 1, 1, 1), (2, 2, 1, 1))
SPLIT_OF_TEN = ("train", "train", "test", "train", "train", "val", "train", "train", "test", "train")
"""Split of a patient by place among ten: 70 % train, 10 % val, 20 % test."""


def stream(seed: int, *key: int | str) -> np.random.Generator:
    """Return the random generator that belongs to `seed` and a key of names and numbers."""
    words = [part if isinstance(part, int) else zlib.crc32(part.encode()) for part in key]
    return np.random.default_rng([seed, *words])


@dataclass(frozen=True)
class Visit:
    """Which patient study `index` shows, and the how-manieth of that patient's studies it is (from 0)."""

    index: int
    patient: int
    number: int
    split: str

    @property
    def study_id(self) -> str:
        """Name of the study, e.g. `s000012`."""
        return f"s{self.index:06d}"

    @property
    def patient_id(self) -> str:
        """Name of the patient, e.g. `p000008`."""
        return f"p{self.patient:06d}"


def visit(seed: int, index: int) -> Visit:
    """Return the visit of study `index`: every six studies belong to four patients, some of whom come back."""
    block, place = divmod(index, STUDIES_PER_BLOCK)
    rng = stream(seed, "visits", block)
    sizes = rng.permutation(_VISITS[int(rng.integers(len(_VISITS)))])
    ends = np.cumsum(sizes)
    member = int(np.searchsorted(ends, place, side="right"))
    patient = block * PATIENTS_PER_BLOCK + member
    turn = int(stream(seed, "split").integers(10))
    return Visit(index, patient, int(place - (ends[member] - sizes[member])), SPLIT_OF_TEN[(patient + turn) % 10])


@dataclass(frozen=True)
class Patient:
    """Anatomy that stays the same between studies. Lengths are in template mm where not said otherwise."""

    age: int
    sex: str
    scale: tuple[float, float, float]
    """Size over template along x, y, z."""
    fat: float
    """Thickness of subcutaneous fat."""
    muscle: float
    """Thickness of the chest wall without fat, over the template's."""
    depth: float
    """Depth of the chest over the template's."""
    apex: float
    """Shift of the lung apex."""
    dome: tuple[float, float]
    """Height of the right and left dome of the diaphragm over the template's."""
    heart: float
    """Size of the normal heart over the template's."""
    heart_turn: float
    """Turn of the heart's long axis, radians; larger lies flatter."""
    aorta: float
    """Radius of the aorta."""
    bone: float
    """Mineral density of bone over the template's."""
    kyphosis: float
    scoliosis: float
    ribs: float
    """Drop of the ribs from back to front over the template's."""
    breast: float
    """Size of the breasts, 0 in men."""


def sample_patient(seed: int, patient: int) -> Patient:
    """Draw a patient; ages follow a hospital (18 to 92 years), size follows sex, bones thin with age."""
    rng = stream(seed, "patient", patient)
    age = int(np.clip(rng.normal(58, 18), 18, 92))
    male = bool(rng.random() < 0.52)
    size = rng.normal(1.0 if male else 0.9, 0.045)
    old = (age - 18) / 74
    fat = float(np.clip(rng.gamma(3.2, 4.2) + (0 if male else 3), 4, 34))
    return Patient(
        age=age,
        sex="M" if male else "F",
        scale=(
            float(size * rng.normal(1, 0.025)),
            float(size * rng.normal(1, 0.03)),
            float(size * rng.normal(0.96, 0.03)),
        ),
        fat=fat,
        muscle=float(np.clip(rng.normal(1.05 if male else 0.88, 0.1), 0.7, 1.4)),
        depth=float(np.clip(rng.normal(0.95 + 0.08 * old, 0.05), 0.82, 1.12)),
        apex=float(rng.normal(0, 4)),
        dome=(float(rng.normal(0, 7)), float(rng.normal(-9, 6))),
        heart=float(np.clip(rng.normal(0.97 + 0.04 * old, 0.035), 0.87, 1.06)),
        heart_turn=float(rng.normal(0.0, 0.12) + 0.006 * (fat - 13)),
        aorta=float(11.0 + 3.5 * old + rng.normal(0, 0.8)),
        bone=float(np.clip(rng.normal(1.12 - 0.32 * old - (0.04 if not male else 0), 0.08), 0.6, 1.3)),
        kyphosis=float(np.clip(rng.normal(0.6 + 0.7 * old, 0.25), 0, 1.8)),
        scoliosis=float(rng.normal(0, 4.0)),
        ribs=float(rng.normal(1, 0.1)),
        breast=0.0 if male else float(np.clip(rng.normal(0.75, 0.25) + 0.012 * fat, 0.35, 1.4)),
    )


@dataclass(frozen=True)
class Posture:
    """How the patient stands in one study."""

    view: str
    """PA or AP."""
    lateral: bool
    """Whether a lateral radiograph is taken."""
    breath: float
    """Rise of the diaphragm by poor inspiration, template mm."""
    turn: tuple[float, float]
    """Slope of the central beam against the patient's y axis along x and z: rotation and lordotic tilt."""
    offset: tuple[float, float]
    """Shift of the image field along x and z, template mm."""
    zoom: float
    """Image field over the extent of the volume."""
    lateral_turn: tuple[float, float]
    """As `turn`, of the lateral: rotation about the long axis, and tilt, along y and z."""
    lateral_offset: tuple[float, float]
    """As `offset`, along y and z."""


def sample_posture(seed: int, index: int, sick: float) -> Posture:
    """Draw a posture; `sick` (0 to 1) makes a bedside AP radiograph, poor inspiration and rotation likelier."""
    rng = stream(seed, "posture", index)
    bedside = bool(rng.random() < 0.12 + 0.4 * sick)
    return Posture(
        view="AP" if bedside else "PA",
        lateral=bool(rng.random() < (0.35 if bedside else 0.9)),
        breath=float(np.clip(rng.normal(8 if bedside else 0, 7), -10, 24)),
        turn=(float(rng.normal(0, 0.045 if bedside else 0.02)), float(rng.normal(-0.07 if bedside else 0, 0.035))),
        offset=(float(rng.normal(0, 4)), float(rng.normal(0, 5))),
        zoom=float(rng.uniform(0.89, 0.98)),
        lateral_turn=(float(rng.normal(0, 0.07)), float(rng.normal(0, 0.04))),
        lateral_offset=(float(rng.normal(0, 8)), float(rng.normal(0, 7))),
    )
