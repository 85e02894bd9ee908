"""What is wrong with a patient: twelve findings with place, size and severity that keep company plausibly.

Guarantee: the findings of a study depend on (seed, patient, visit) alone; a follow-up starts from the visit before,
so that "unchanged", "improved" and "resolved" are true.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from medvlp.sources.phantom.patient import Patient, stream

NAMES = (
    "effusion",
    "pneumothorax",
    "consolidation",
    "atelectasis",
    "cardiomegaly",
    "edema",
    "nodule",
    "mass",
    "emphysema",
    "fibrosis",
    "fracture",
    "device",
)
"""All findings of the phantom."""
LOCAL = ("effusion", "pneumothorax", "consolidation", "atelectasis", "nodule", "mass", "fracture", "device")
"""Those that lie in one place, with an outline of their own; the heart's is the heart, the others fill the lungs."""
_LOBES = ("right upper lobe", "right middle lobe", "right lower lobe", "left upper lobe", "left lower lobe")
DEVICES = ("pacemaker", "central line", "picc", "port", "endotracheal tube", "enteric tube", "chest tube")


@dataclass(frozen=True)
class Finding:
    """One finding of a patient.

    Args:
        name: One of `NAMES`.
        severity: 0 (just visible) to 1 (extreme).
        key: Number of its random stream: shape and place stay the same in follow-ups.
        side: right or left; None for the heart and for both lungs.
        lobe: Lobe, for what lies in one.
        size_mm: Diameter of a nodule or mass.
        kind: Kind of device, atelectasis (plate, lobar) or fracture (acute, healed).
        rib: Rib 1 to 12 of a fracture.
        angle: Place of a fracture along the rib, degrees from the spine.
        change: Against the study before: new, unchanged, improved, worse; None without one.
    """

    name: str
    severity: float
    key: int
    side: str | None = None
    lobe: str | None = None
    size_mm: float | None = None
    kind: str | None = None
    rib: int | None = None
    angle: float | None = None
    change: str | None = None

    @property
    def anatomy(self) -> str:
        """Where it is, in words of a report."""
        if self.lobe:
            return self.lobe
        if self.name in ("effusion", "pneumothorax"):
            return f"{self.side} pleural space"
        if self.name == "cardiomegaly":
            return "heart"
        if self.name == "fracture":
            return f"{self.side} {_ordinal(self.rib or 0)} rib"
        if self.name == "device":
            return self.kind_place
        return "lungs"

    @property
    def kind_place(self) -> str:
        """Where a device is."""
        places = {
            "endotracheal tube": "trachea",
            "enteric tube": "esophagus",
            "chest tube": f"{self.side} pleural space",
            "pacemaker": f"{self.side} chest wall",
            "port": f"{self.side} chest wall",
        }
        return places.get(self.kind or "", "superior vena cava")


def _ordinal(number: int) -> str:
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number, 'th') }"


_PROFILES: dict[str, tuple[float, dict[str, float]]] = {
    "well": (0.26, {}),
    "heart failure": (
        0.19,
        {"cardiomegaly": 0.85, "edema": 0.6, "effusion": 0.5, "pacemaker": 0.3, "atelectasis": 0.12},
    ),
    "infection": (0.15, {"consolidation": 0.95, "effusion": 0.3, "atelectasis": 0.15, "nodule": 0.05}),
    "copd": (
        0.13,
        {"emphysema": 0.95, "nodule": 0.25, "pneumothorax": 0.2, "consolidation": 0.12, "cardiomegaly": 0.08},
    ),
    "fibrosis": (0.12, {"fibrosis": 0.95, "cardiomegaly": 0.15, "nodule": 0.1, "pneumothorax": 0.08}),
    "tumour": (
        0.17,
        {"mass": 0.62, "nodule": 0.5, "effusion": 0.25, "port": 0.3, "atelectasis": 0.22, "emphysema": 0.18},
    ),
    "injury": (
        0.13,
        {"fracture": 0.9, "pneumothorax": 0.45, "effusion": 0.18, "atelectasis": 0.2, "consolidation": 0.12},
    ),
    "intensive care": (
        0.12,
        {"tube": 0.6, "line": 0.8, "atelectasis": 0.5, "effusion": 0.4, "edema": 0.35, "consolidation": 0.35,
         "pneumothorax": 0.12, "cardiomegaly": 0.25},
    ),
}  # fmt: skip
"""Profile of a patient -> share of patients, and chance of each finding."""
_CHRONIC = {"cardiomegaly", "nodule", "mass", "emphysema", "fibrosis", "fracture"}


def _draw(rng: np.random.Generator, what: str, patient: Patient, key: int) -> list[Finding]:
    severity = float(np.clip(rng.beta(1.7, 1.9), 0.04, 1))
    side = "right" if rng.random() < 0.55 else "left"
    lobe = str(_LOBES[int(rng.choice(5, p=[0.22, 0.12, 0.26, 0.17, 0.23]))])
    spot = Finding(what, severity, key, side=lobe.split()[0], lobe=lobe)
    made: list[Finding]
    if what == "effusion":
        made = [Finding(what, severity, key, side=side)]
        if rng.random() < 0.3:
            other = "left" if side == "right" else "right"
            made.append(Finding(what, float(np.clip(severity * rng.uniform(0.5, 1.1), 0.04, 1)), key + 1, side=other))
    elif what == "pneumothorax":
        made = [Finding(what, severity, key, side=side)]
        if rng.random() < 0.3:
            made.append(Finding("device", 0.5, key + 1, side=side, kind="chest tube"))
    elif what == "consolidation":
        made = [spot]
        if rng.random() < 0.2:
            rest = [name for name in _LOBES if name != lobe]
            second = str(rest[int(rng.integers(4))])
            made.append(replace(spot, key=key + 1, lobe=second, side=second.split()[0], severity=severity * 0.8))
    elif what == "atelectasis":
        kind = "lobar" if rng.random() < 0.3 else "plate"
        if kind == "plate" and lobe == "right upper lobe":
            lobe = "right lower lobe"
        made = [replace(spot, lobe=lobe, side=lobe.split()[0], kind=kind)]
    elif what == "nodule":
        made = [replace(spot, size_mm=round(9 + 20 * severity), kind="calcified" if rng.random() < 0.12 else None)]
    elif what == "mass":
        made = [replace(spot, size_mm=round(34 + 42 * severity))]
    elif what == "fracture":
        made = [
            Finding(
                what, severity, key, side=side, rib=int(rng.integers(4, 10)), angle=float(rng.uniform(45, 100)),
                kind="healed" if rng.random() < 0.35 else "acute",
            )
        ]  # fmt: skip
    elif what in ("pacemaker", "port"):
        left = rng.random() < (0.85 if what == "pacemaker" else 0.25)
        made = [Finding("device", severity, key, side="left" if left else "right", kind=what)]
    elif what == "tube":
        made = [Finding("device", severity, key, kind="endotracheal tube")]
        if rng.random() < 0.7:
            made.append(Finding("device", severity, key + 1, kind="enteric tube"))
    elif what == "line":
        kind = "picc" if rng.random() < 0.4 else "central line"
        made = [Finding("device", severity, key, side="right" if rng.random() < 0.75 else "left", kind=kind)]
    else:
        made = [Finding(what, severity, key)]
    return made


def _first(seed: int, patient_number: int, patient: Patient) -> list[Finding]:
    rng = stream(seed, "findings", patient_number)
    names = list(_PROFILES)
    weights = np.array([_PROFILES[name][0] for name in names])
    old = (patient.age - 55) / 40
    weights *= np.exp(np.array([-0.7 * old, 0.9 * old, 0, 0.8 * old, 0.8 * old, 0.7 * old, -0.5 * old, 0]))
    profiles = [names[int(rng.choice(len(names), p=weights / weights.sum()))]]
    if profiles[0] != "well" and rng.random() < 0.22:
        profiles.append(names[1 + int(rng.choice(len(names) - 1, p=weights[1:] / weights[1:].sum()))])
    found: dict[str, list[Finding]] = {}
    for profile in profiles:
        for number, (what, chance) in enumerate(_PROFILES[profile][1].items()):
            hit = rng.random() < chance
            drawn = _draw(rng, what, patient, 100 * names.index(profile) + 10 * number)
            if hit and what not in found:
                found[what] = drawn
    return [finding for group in found.values() for finding in group]


def _next(before: list[Finding], patient: Patient, rng: np.random.Generator, number: int) -> list[Finding]:
    after: list[Finding] = []
    for finding in before:
        fate = rng.random()
        factor = rng.uniform(1.3, 1.8)
        if finding.name == "device":
            stays = finding.kind in ("pacemaker", "port") or fate < 0.55
            if stays:
                after.append(replace(finding, change="unchanged"))
            continue
        chronic = finding.name in _CHRONIC
        if fate < (0.7 if chronic else 0.3):
            after.append(replace(finding, change="unchanged"))
        elif fate < (0.85 if chronic else 0.45):
            worse = min(finding.severity * factor + 0.05, 1.0)
            size = finding.size_mm
            if size is not None and finding.name == "nodule":
                size = min(round(size * 1.25 + 2), 30)
            elif size is not None:
                size = round(size * 1.2 + 2)
            steady = finding.name in ("fracture",)
            after.append(finding if steady else replace(finding, severity=worse, size_mm=size, change="worse"))
            if steady:
                after[-1] = replace(finding, change="unchanged")
        elif fate < 0.7 and not chronic:
            after.append(replace(finding, severity=max(finding.severity / factor - 0.03, 0.04), change="improved"))
        elif chronic:
            after.append(replace(finding, change="unchanged"))
    if rng.random() < 0.22:
        what = ("effusion", "atelectasis", "consolidation", "edema", "pneumothorax")[int(rng.integers(5))]
        drawn = _draw(rng, what, patient, 2000 + 100 * number)
        if all(finding.name != what for finding in before):
            after += [replace(finding, change="new") for finding in drawn]
    return after


def sample_findings(
    seed: int, patient_number: int, patient: Patient, visit: int
) -> tuple[list[Finding], list[Finding]]:
    """Return the findings at a visit (0 is the first), and those at the visit before (empty at the first)."""
    before: list[Finding] = []
    now = _first(seed, patient_number, patient)
    for number in range(1, visit + 1):
        before = now
        now = _next(now, patient, stream(seed, "follow-up", patient_number, number), number)
    return now, before


def sickness(findings: list[Finding]) -> float:
    """Return 0 to 1: how likely the patient is examined in bed."""
    weight = {
        "edema": 0.4,
        "effusion": 0.25,
        "pneumothorax": 0.3,
        "consolidation": 0.25,
        "device": 0.3,
        "fracture": 0.2,
    }
    return float(min(sum(weight.get(finding.name, 0.05) for finding in findings), 1.0))


CHEXPERT: dict[str, tuple[str, ...]] = {
    "effusion": ("Pleural Effusion",),
    "pneumothorax": ("Pneumothorax",),
    "consolidation": ("Consolidation", "Pneumonia", "Lung Opacity"),
    "atelectasis": ("Atelectasis", "Lung Opacity"),
    "cardiomegaly": ("Cardiomegaly", "Enlarged Cardiomediastinum"),
    "edema": ("Edema", "Lung Opacity"),
    "nodule": ("Lung Lesion", "Lung Opacity"),
    "mass": ("Lung Lesion", "Lung Opacity"),
    "emphysema": (),
    "fibrosis": ("Lung Opacity",),
    "fracture": ("Fracture",),
    "device": ("Support Devices",),
}
"""Finding -> CheXpert names that are present in the image when the finding is (CheXpert's hierarchy; see the card)."""


def image_labels(findings: list[Finding], names: tuple[str, ...]) -> dict[str, float]:
    """Return 1 or 0 for every CheXpert name: what is in the patient, whatever the report says.

    Args:
        findings: All findings of the study.
        names: The label names of the data card.
    """
    present = {name for finding in findings for name in CHEXPERT[finding.name]}
    if all(finding.name == "device" for finding in findings):
        present.add("No Finding")
    return {name: float(name in present) for name in names}
