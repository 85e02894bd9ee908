"""Radiographs of a volume: Beer-Lambert along diverging rays, scatter, blur, quantum noise and the detector's curve.

Guarantee: `line_integral` is the integral of attenuation along the rays of a point source, to first order in the
thickness of a slab (8 mm); masks go through the same geometry. Images are shown as readers see them: PA and AP with
the patient's right on the image's left, laterals with the front on the image's left; bright is dense.

Slabs of the volume parallel to the detector are magnified by distance and summed, which is what diverging rays do; an
AP radiograph (source in front, shorter distance) therefore magnifies the heart more than a PA. Rotation of the
patient and a tilted beam are the same with a shifted source.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from medvlp.sources.phantom.grid import Grid
from medvlp.sources.phantom.patient import Patient, Posture

MU_WATER = 0.0190
"""Attenuation of water at an effective energy of about 70 keV, 1/mm (NIST XCOM: 0.193/cm)."""
BONE_GAIN = 1.5
"""Attenuation of mineral over what its HU say; above the physical value, so that bone is seen through coarse voxels."""
SLAB_MM = 8.0


@dataclass(frozen=True)
class View:
    """Geometry of one exposure. Lengths in mm.

    Args:
        name: PA, AP or LATERAL.
        distance: Source to detector.
        gap: Detector to the nearest face of the volume.
        turn: Slope of the central ray along the image's two axes of the patient: (x or y, z).
        offset: Shift of the image field in mm, (columns, rows) in patient directions.
        zoom: Field of view over the volume's own extent.
    """

    name: str
    distance: float
    gap: float
    turn: tuple[float, float] = (0.0, 0.0)
    offset: tuple[float, float] = (0.0, 0.0)
    zoom: float = 1.0


def views_of(posture: Posture) -> list[View]:
    """Return the exposures of a study: one frontal view, and a lateral where the posture has one."""
    if posture.view == "PA":
        views = [View("PA", 1830.0, 30.0, posture.turn, posture.offset, posture.zoom)]
    else:
        views = [View("AP", 1050.0, 30.0, posture.turn, posture.offset, posture.zoom + 0.03)]
    if posture.lateral:
        views.append(View("LATERAL", 1830.0, 30.0, posture.lateral_turn, posture.lateral_offset, posture.zoom + 0.02))
    return views


def attenuation(hu: Float[np.ndarray, "d h w"]) -> Float[np.ndarray, "d h w"]:
    """Return the linear attenuation in 1/mm of HU; what exceeds soft tissue counts as mineral."""
    mu = hu * np.float32(MU_WATER / 1000)
    mu += np.float32(MU_WATER)
    np.maximum(mu, 0, out=mu)
    mineral = hu - np.float32(100)
    np.maximum(mineral, 0, out=mineral)
    mineral *= np.float32(MU_WATER / 1000 * (BONE_GAIN - 1))
    mu += mineral
    return mu


def _project(
    volume: np.ndarray,
    grid: Grid,
    view: View,
    size: int,
    slab_mm: float,
    cubic: bool,
    box: tuple[slice, slice, slice] | None,
) -> Float[np.ndarray, "h w"]:
    """Sum slabs of a quantity per mm into an image `[size size]`: rows from superior, columns as displayed."""
    spacing = grid.spacing_mm
    frontal = view.name != "LATERAL"
    # The face at `gap` from the detector is the anterior one for PA, the posterior for AP, the left for LATERAL.
    depth_axis = 1 if frontal else 2
    across = 2 if frontal else 1
    box = box or (slice(0, grid.size),) * 3
    first, count = box[depth_axis].start, box[depth_axis].stop - box[depth_axis].start
    group = max(int(slab_mm / spacing[depth_axis]), 1)
    starts = np.arange(0, count, group)
    slabs = np.empty((len(starts), volume.shape[0], volume.shape[across]), np.float32)
    for number, start in enumerate(starts):
        slab = volume[:, start : start + group] if frontal else volume[:, :, start : start + group]
        slab.sum(axis=depth_axis, out=slabs[number])
    slabs *= np.float32(spacing[depth_axis])
    half = grid.size / 2
    field_mm = grid.size * max(spacing[0], spacing[across]) * view.zoom
    pixel = field_mm / size
    image = np.zeros((size, size), np.float32)
    for number, start in enumerate(starts):
        stop = min(start + group, count)
        middle = (first + (start + stop) / 2) * spacing[depth_axis]
        thickness = grid.size * spacing[depth_axis]
        lift = view.gap + (thickness - middle if view.name == "PA" else middle)
        scale = view.distance / (view.distance - lift)
        along = middle - thickness / 2
        shift = (view.turn[0] * along + view.offset[0], view.turn[1] * along + view.offset[1])
        plane = slabs[number]
        # Columns run from the patient's right to left, or from front to back: against the array's axis.
        ax, az = scale * spacing[across] / pixel, scale * spacing[0] / pixel
        column0 = box[across].start - half + 0.5
        row0 = box[0].start - half + 0.5
        matrix = np.array(
            [
                [-ax, 0, size / 2 - 0.5 - ax * column0 - shift[0] * scale / pixel],
                [0, -az, size / 2 - 0.5 - az * row0 - shift[1] * scale / pixel],
            ]
        )
        border = 0
        image += cv2.warpAffine(
            plane,
            matrix,
            (size, size),
            flags=cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR,
            borderMode=border,
        )
    return image


def pixel_mm(grid: Grid, view: View, size: int) -> float:
    """Return the distance of pixels on the detector in mm."""
    across = 2 if view.name != "LATERAL" else 1
    return grid.size * max(grid.spacing_mm[0], grid.spacing_mm[across]) * view.zoom / size


def line_integral(
    mu: Float[np.ndarray, "d h w"], grid: Grid, view: View, size: int, slab_mm: float = SLAB_MM
) -> Float[np.ndarray, "size size"]:
    """Return the integral of attenuation (1/mm) along the ray through each detector pixel."""
    image = _project(mu, grid, view, size, slab_mm, True, None)
    # Cubic interpolation leaves the voxel raster visible where pixels are finer than voxels.
    raster = 0.45 * size / (grid.size * view.zoom)
    image = cv2.GaussianBlur(image, (0, 0), raster) if raster > 0.3 else image
    at = (np.arange(size) - size / 2 + 0.5) * pixel_mm(grid, view, size) / view.distance
    image *= np.sqrt(1 + at[:, None] ** 2 + at[None, :] ** 2).astype(np.float32)
    return np.maximum(image, 0)


def arms_away(grid: Grid) -> Float[np.ndarray, "d 1 w"]:
    """Return the share (0 to 1) of each voxel that stays for a lateral: arms are raised out of the field."""
    width = np.interp(grid.z, [0, 60, 120], [172, 166, 140]).astype(np.float32)
    return np.clip((width - np.abs(grid.x)) / 12 + 0.5, 0, 1)


@dataclass(frozen=True)
class Wires:
    """Points of devices in template mm and the HU x mm³ (of the template) that each stands for."""

    points: Float[np.ndarray, "n 3"]
    weights: Float[np.ndarray, " n"]


def wire_integral(wires: Wires, grid: Grid, view: View, size: int) -> Float[np.ndarray, "size size"]:
    """Return the line integrals of devices, drawn at the image's own resolution along the same rays as the volume."""
    scale = np.array(grid.scale)
    centre = np.array([grid.first[k] + grid.step[k] * (grid.size - 1) / 2 for k in range(3)])
    at = (wires.points - centre) * scale
    lateral = view.name == "LATERAL"
    depth, across = (at[:, 0], at[:, 1]) if lateral else (at[:, 1], at[:, 0])
    thick = grid.size * grid.spacing_mm[2 if lateral else 1]
    zoom = view.distance / (view.distance - view.gap - thick / 2 - (-depth if view.name == "PA" else depth))
    pixel = pixel_mm(grid, view, size)
    column = size / 2 - 0.5 - zoom * (across + view.turn[0] * depth + view.offset[0]) / pixel
    row = size / 2 - 0.5 - zoom * (at[:, 2] + view.turn[1] * depth + view.offset[1]) / pixel
    mu = wires.weights * (np.prod(scale) * MU_WATER / 1000 * BONE_GAIN) * (zoom / pixel) ** 2
    if lateral:
        index = grid.index(wires.points)
        mu = mu * arms_away(grid)[index[:, 0], 0, index[:, 2]]
    low_row, low_column = np.floor(row).astype(int), np.floor(column).astype(int)
    image = np.zeros(size * size)
    for down in (0, 1):
        for right in (0, 1):
            r, c = low_row + down, low_column + right
            share = (1 - np.abs(row - r)) * (1 - np.abs(column - c))
            good = (r >= 0) & (r < size) & (c >= 0) & (c < size)
            image += np.bincount(r[good] * size + c[good], (mu * share)[good], size * size)
    return cv2.GaussianBlur(image.reshape(size, size).astype(np.float32), (0, 0), 0.6)


def project_mask(mask: np.ndarray, box: tuple[slice, slice, slice], grid: Grid, view: View, size: int) -> np.ndarray:
    """Return the pixels `[size size]` (bool) whose ray runs more than 2 mm inside a 3D mask (its box and voxels)."""
    length = _project(mask.astype(np.float32), grid, view, size, 2 * SLAB_MM, False, box)
    return length > 2.0


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return x, y, width, height of the True pixels, or None where there are none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)


@dataclass(frozen=True)
class Exposure:
    """How an image is made from its line integrals. `photons` is the mean count of a pixel without a patient."""

    photons: float
    scatter: float
    blur_mm: float
    sharpen: float
    low: float
    high: float
    shoulder: float
    bright: float
    collimate: tuple[int, int, int, int]
    marker: bool


def sample_exposure(view: View, patient: Patient, grid: Grid, rng: np.random.Generator, size: int) -> Exposure:
    """Draw an exposure; the window follows the patient's thickness, as an exposure chart does, not the findings."""
    bedside = view.name == "AP"
    sx, sy, _ = grid.scale
    wall = MU_WATER * (34 + 1.5 * patient.fat) * sy
    chest = MU_WATER * (192 * patient.depth + 36 + 2 * patient.fat) * sy
    if view.name == "LATERAL":
        wall = MU_WATER * (60 + 2.0 * patient.fat) * sx
        chest = MU_WATER * (345 + 2 * patient.fat) * sx
    scatter = rng.uniform(0.45, 0.7) if bedside else rng.uniform(0.25, 0.45)
    if view.name == "LATERAL":  # the gap and the grid take most of it
        scatter *= 0.35
    edge = [int(v) for v in np.maximum(rng.normal(2, 5, 4), 0) * size / 256]
    return Exposure(
        photons=float(rng.uniform(4e4, 9e4) if not bedside else rng.uniform(2e4, 4e4))
        * (4 if view.name == "LATERAL" else 1),
        scatter=scatter,
        blur_mm=float(rng.uniform(0.5, 0.9)),
        sharpen=float(rng.uniform(0.8, 1.2)),
        low=float(wall * rng.normal(1.0, 0.05)),
        high=float(chest * rng.normal(1.1, 0.03)),
        shoulder=float(rng.uniform(0.5, 1.4)),
        bright=float(rng.uniform(0.84, 0.95)),
        collimate=(edge[0], edge[1], edge[2], edge[3]),
        marker=bool(rng.random() < 0.7),
    )


def expose(
    integral: Float[np.ndarray, "h w"], exposure: Exposure, pixel: float, view: View, rng: np.random.Generator | None
) -> UInt8[np.ndarray, "h w"]:
    """Turn line integrals into an 8-bit radiograph; without `rng` there is no quantum noise."""
    size = integral.shape[0]
    primary = np.exp(-integral)
    veil = cv2.blur(primary, (size // 5 | 1, size // 5 | 1), borderType=cv2.BORDER_REFLECT)
    veil = np.minimum(cv2.blur(veil, (size // 8 | 1, size // 8 | 1), borderType=cv2.BORDER_REFLECT), 0.09)
    signal = cv2.GaussianBlur(primary, (0, 0), exposure.blur_mm / pixel * 0.6 + 0.2) + exposure.scatter * veil
    if rng is not None:
        noise = rng.standard_normal(signal.shape, dtype=np.float32)
        signal = signal + np.sqrt(signal / exposure.photons) * noise
    shown = -np.log(np.maximum(signal, 1e-4))
    shown = shown + exposure.sharpen * (shown - cv2.GaussianBlur(shown, (0, 0), size / 110))
    shown = shown + 0.55 * (shown - cv2.GaussianBlur(shown, (0, 0), size / 20))
    low = -np.log(np.exp(-exposure.low) + exposure.scatter * 0.04)
    high = -np.log(np.exp(-exposure.high) + exposure.scatter * 0.012)
    t = np.maximum((shown - low) / (high - low), -0.2)
    # A film's shoulder: soft tissue behind soft tissue still differs a little.
    curve = exposure.bright * (1 - np.exp(-exposure.shoulder * (t + 0.1))) / (1 - np.exp(-exposure.shoulder * 1.1))
    curve = np.where(curve > 0.8, 0.8 + 0.2 * np.tanh((curve - 0.8) / 0.2), curve)
    curve *= np.clip((integral - 0.02) / 0.25, 0, 1)
    top, bottom, left, right = exposure.collimate
    image = np.clip(curve * 250, 0, 255)
    field = np.zeros_like(image)
    field[top : size - bottom, left : size - right] = 1
    image = image * cv2.blur(field, (3, 3))
    shown8 = np.rint(image).astype(np.uint8)
    if exposure.marker and view.name != "LATERAL":
        k = size / 256
        place, width = (int(14 * k), int(34 * k)), max(int(1.6 * k), 1)
        cv2.putText(shown8, "R", place, cv2.FONT_HERSHEY_SIMPLEX, 0.5 * k, 235, width, cv2.LINE_AA)
    return shown8
