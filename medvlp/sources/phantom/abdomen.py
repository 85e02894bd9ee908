"""A coarse abdominal CT: body, organs as ellipsoids at their places, vessels, lower lungs, perhaps a tumour.

Guarantee: a volume depends on (seed, number, size) alone. Right is right: the liver lies on the patient's right (large
`w`), the spleen on the left, the spine at the back (small `h`), the bladder at the bottom (small `d`). Structures have
the names of TotalSegmentator, tumours `<organ>_tumor`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medvlp.sources.phantom.examples import ExampleLesion, ExampleVolume
from medvlp.sources.phantom.patient import sample_patient, stream, visit

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Point = tuple[float, float, float]

EXTENT_MM = (360.0, 280.0, 440.0)
"""Field of view along x (right), y (anterior), z (superior); its centre is (0, 0, 0)."""
AIR, FAT, MUSCLE = -1000, -100, 50
_BODY, _SKIN, _WALL = (165.0, 115.0), 14.0, 26.0
"""Half axes of the body, and depth in mm at which the muscle of its wall begins and ends."""

ORGANS: dict[str, tuple[Point, Point, int]] = {
    "lung_lower_lobe_right": ((75, -20, 175), (62, 75, 65), -850),
    "lung_lower_lobe_left": ((-75, -20, 175), (62, 75, 65), -850),
    "heart": ((-20, 30, 180), (55, 45, 40), 45),
    "liver": ((70, 15, 65), (78, 68, 58), 60),
    "stomach": ((-55, 35, 65), (42, 36, 40), 20),
    "small_bowel": ((0, 35, -75), (75, 42, 50), 25),
    "colon": ((105, 15, -60), (24, 24, 75), 0),
    "duodenum": ((38, 15, 8), (17, 16, 32), 30),
    "spleen": ((-98, -35, 65), (27, 38, 44), 50),
    "kidney_right": ((62, -48, -8), (24, 24, 50), 35),
    "kidney_left": ((-62, -48, 4), (24, 24, 50), 35),
    "esophagus": ((-6, -22, 150), (9, 8, 65), 35),
    "vertebrae_L1": ((0, -68, 32), (23, 19, 14), 260),
    "vertebrae_L2": ((0, -67, 0), (23, 19, 14), 260),
    "vertebrae_L3": ((0, -66, -32), (24, 19, 14), 260),
    "vertebrae_L4": ((0, -66, -64), (24, 19, 14), 260),
    "vertebrae_L5": ((0, -67, -96), (25, 19, 14), 260),
    "sacrum": ((0, -78, -140), (38, 18, 32), 240),
    "aorta": ((-14, -34, 40), (11, 11, 170), 150),
    "inferior_vena_cava": ((20, -32, 30), (12, 11, 150), 120),
    "portal_vein_and_splenic_vein": ((-10, 0, 48), (55, 7, 7), 130),
    "pancreas": ((-18, 4, 28), (58, 12, 13), 40),
    "adrenal_gland_right": ((44, -38, 48), (9, 5, 12), 40),
    "adrenal_gland_left": ((-44, -36, 56), (9, 5, 12), 40),
    "gallbladder": ((62, 62, 12), (14, 16, 26), 10),
    "urinary_bladder": ((0, 30, -165), (38, 32, 28), 5),
    "prostate": ((0, 2, -200), (21, 17, 16), 40),
}
"""Structure -> centre (right, anterior, superior) and half axes in mm, and HU; later ones lie over earlier ones."""

TUMOURS: dict[str, tuple[str, int]] = {
    "liver_tumor": ("liver", 15),
    "pancreas_tumor": ("pancreas", 10),
    "colon_tumor": ("colon", 45),
    "kidney_tumor": ("kidney_right", 60),
    "lung_tumor": ("lung_lower_lobe_right", 20),
}
"""Tumour -> the organ that it grows in, and HU."""


def abdomen_volume(seed: int, number: int, size: int = 64) -> ExampleVolume:
    """Make the CT of examination `number`: `size`³ voxels, HU, with its structures and tumours.

    Args:
        seed: Seed of the data set.
        number: Number of the examination; its patient follows from it.
        size: Voxels per axis.
    """
    who = visit(seed, number)
    scale = np.array(sample_patient(seed, who.patient).scale)
    shape_rng, noise = stream(seed, "abdomen", who.patient), stream(seed, "abdomen noise", number)
    steps = np.array(EXTENT_MM) / size
    axes = [-extent / 2 + step * (np.arange(size) + 0.5) for extent, step in zip(EXTENT_MM, steps, strict=True)]
    x, y, z = axes[0][None, None, :], axes[1][None, :, None], axes[2][:, None, None]

    def inside(centre: Float[np.ndarray, " 3"], radii: Float[np.ndarray, " 3"]) -> Bool[np.ndarray, "d h w"]:
        distance = [(axis - c) / r for axis, c, r in zip((x, y, z), centre, radii, strict=True)]
        return distance[0] ** 2 + distance[1] ** 2 + distance[2] ** 2 <= 1

    def trunk(depth: float) -> Bool[np.ndarray, "1 h w"]:
        return (x / (_BODY[0] * scale[0] - depth)) ** 2 + (y / (_BODY[1] * scale[1] - depth)) ** 2 <= 1

    core = trunk(_SKIN)
    layers = np.where(trunk(_WALL), FAT, np.where(core, MUSCLE, np.where(trunk(0), FAT, AIR)))
    hu = layers.astype(np.float32) * np.ones_like(z)
    structures = np.zeros(hu.shape, np.uint8)
    names = dict(enumerate([*ORGANS, *TUMOURS], 1))
    values = {name: value for value, name in names.items()}
    for name, (centre, radii, density) in ORGANS.items():
        moved = np.array(centre) * scale + shape_rng.normal(0, 2, 3)
        mask = inside(moved, np.array(radii) * scale * shape_rng.uniform(0.92, 1.08, 3)) & core
        hu[mask], structures[mask] = density, values[name]
    lesions = []
    for name, (organ, density) in TUMOURS.items():
        diameter = float(shape_rng.uniform(16, 36))
        if shape_rng.random() > 0.5:
            continue
        places = np.argwhere(structures == values[organ])
        d, h, w = places[int(shape_rng.integers(len(places)))] if len(places) else (0, 0, 0)
        centre_mm = np.array([axes[0][w], axes[1][h], axes[2][d]])
        mask = inside(centre_mm, np.full(3, diameter / 2)) & (structures == values[organ])
        if mask.any():
            hu[mask], structures[mask] = density, values[name]
            right, anterior, superior = map(float, centre_mm)
            lesions.append(ExampleLesion(name, (right, anterior, superior), diameter))
    hu += noise.normal(0, 12, hu.shape)
    affine = np.zeros((4, 4))
    affine[0, 2], affine[1, 1], affine[2, 0], affine[3, 3] = *steps, 1
    affine[:3, 3] = [axis[0] for axis in axes]
    found = set(np.unique(structures).tolist())
    return ExampleVolume(
        np.rint(np.clip(hu, -1024, 3071)).astype(np.int16),
        affine,
        structures,
        {value: name for value, name in names.items() if value in found},
        tuple(lesions),
    )
