"""Random changes of volumes: drawn on the CPU by counting, made on the device for a whole batch.

Guarantee: what is drawn is a function of (seed, epoch, sample) alone and travels in `Batch.extra`; a batch without it
(validation) is moved and not touched. Flips and quarter turns are exact. Affines, places of views and organs follow the
voxels. The noise itself comes from a generator of the device, started from a drawn number: it repeats on devices of one
kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from medvlp.errors import UserError

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float, Int, Int16, Integer

    from medvlp.config.data import VolumeAugmentConfig
    from medvlp.types import Batch

GRID, VALUES = "augment_grid", "augment_values"
"""Keys in `Batch.extra` of what is to be done: `[b 4 4]` from the index of a changed voxel to that of the one it comes
from, and `[b 5]` factor, summand, noise, key of the noise, and the value outside. Of view I they end in `_I` and have
`[b n ...]`."""
NUMBERS = 12
"""Uniform numbers that `draw_changes` takes for each sample."""
CHUNK_VOXELS = 1 << 24
"""Voxels that are resampled at a time; they take some 400 MB."""


def draw_changes(
    config: VolumeAugmentConfig,
    u: Float[np.ndarray, "n 12"],
    size: tuple[int, int, int],
    spacing_mm: Float[np.ndarray, "n 3"],
    outside: int | Int[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, "n 4 4"], Float[np.ndarray, "n 5"]]:
    """Return what `on_device` does to volumes, see `GRID` and `VALUES`.

    Args:
        config: Strength of each change.
        u: Numbers in [0, 1); the first three decide the flips.
        size: Voxels along d, h, w.
        spacing_mm: Distance of the voxels, NaN where nobody says: then rotation is one of voxels.
        outside: Value of what comes from outside the volume, one or one for each.
    """
    n, strength = len(u), np.array(config.rotate_degrees)
    signs = np.where(flips(config, u), -1.0, 1.0)
    degrees = (2 * u[:, 4:7] - 1) * strength
    zoom = 1 + (2 * u[:, 7] - 1) * config.zoom
    quarters = np.floor(4 * u[:, 3]).astype(int) if config.rot90 else np.zeros(n, int)
    middle = (np.array(size) - 1) / 2
    matrices, values = np.tile(np.eye(4), (n, 1, 1)), np.empty((n, 5))
    for i in range(n):
        scale = np.where(np.isnan(spacing_mm[i]), 1.0, spacing_mm[i])
        turn = _rotation(degrees[i]) * scale / scale[:, None] if degrees[i].any() else np.eye(3)
        matrix = turn / zoom[i] @ _quarter_turns(quarters[i]) * signs[i]
        matrices[i, :3, :3], matrices[i, :3, 3] = matrix, middle - matrix @ middle
    values[:, 0] = 1 + (2 * u[:, 8] - 1) * config.scale
    values[:, 1] = (2 * u[:, 9] - 1) * config.shift
    values[:, 2] = u[:, 10] * config.noise
    values[:, 3] = u[:, 11] * 2.0**53  # whole, and exact in a float64
    values[:, 4] = outside
    return matrices, values


def planned(
    config: VolumeAugmentConfig,
    u: Float[np.ndarray, "*n 12"],
    size: tuple[int, int, int],
    spacing_mm: Float[np.ndarray, "*n 3"],
    outside: int | Int[np.ndarray, "*n"],
    end: str = "",
) -> dict[str, torch.Tensor]:
    """Return what is drawn as `Batch.extra` carries it, empty where nothing is ever done; see `draw_changes`.

    Args:
        config: As for `draw_changes`.
        u: As for `draw_changes`.
        size: As for `draw_changes`.
        spacing_mm: As for `draw_changes`.
        outside: As for `draw_changes`.
        end: Of the keys: empty, or `_I` of view I.
    """
    import torch

    if not config.moves:
        return {}
    shape = u.shape[:-1]
    filled = np.broadcast_to(outside, shape).reshape(-1)
    matrices, values = draw_changes(config, u.reshape(-1, NUMBERS), size, spacing_mm.reshape(-1, 3), filled)
    return {
        GRID + end: torch.from_numpy(matrices.reshape(*shape, 4, 4)),
        VALUES + end: torch.from_numpy(values.reshape(*shape, 5)),
    }


def check_turns(config: VolumeAugmentConfig | None, sizes: Sequence[tuple[int, int, int]], key: str) -> None:
    """Raise `UserError` where quarter turns are to be made of volumes that are no squares in the axial plane.

    Args:
        config: Strength of the changes, or None.
        sizes: Voxels of the volumes along d, h, w.
        key: Of the augmentation in the configuration.
    """
    uneven = [size for size in sizes if size[1] != size[2]]
    if config is not None and config.rot90 and uneven:
        raise UserError(
            f"Quarter turns need squares in the axial plane, and the volumes have {uneven[0]} voxels.",
            f"{key}.rot90",
            f"Set {key}.rot90=false, or a model input with equal h and w.",
        )


def flips(config: VolumeAugmentConfig, u: Float[np.ndarray, "n 12"]) -> Bool[np.ndarray, "n 3"]:
    """Return along which axes each sample is mirrored."""
    return (u[:, :3] < 0.5) & np.array([axis in config.flip for axis in "dhw"])


def _quarter_turns(number: int) -> Float[np.ndarray, "3 3"]:
    turn = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    return np.linalg.matrix_power(turn, number)


def _rotation(degrees: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "3 3"]:
    """Return the turn about d, then h, then w."""
    whole = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        one, two = (other for other in range(3) if other != axis)
        part = np.eye(3)
        part[[one, two], [one, two]] = np.cos(angle)
        part[one, two], part[two, one] = -np.sin(angle), np.sin(angle)
        whole = part @ whole
    return whole


def on_device(batch: Batch, device: torch.device | str) -> Batch:
    """Return a batch on a device, with the changes made that were drawn for it.

    `pixels`, `extra["organs"]` and the views that were drawn on their own are changed, the affines follow; views that
    lie within `pixels` are cut out of the changed ones.
    """
    extra = dict(batch.extra)
    ends = ["", *(f"_{number}" for number in range(len(batch.views)))]
    plans = {end: (extra.pop(GRID + end), extra.pop(VALUES + end)) for end in ends if GRID + end in extra}
    moved = replace(batch, extra=extra).to(device)
    if not plans:
        return moved
    matrices, values = plans[""]
    pixels, views, extra = changed(moved.pixels, matrices, values), list(moved.views), moved.extra
    if "affine" in extra:
        extra["affine"] = extra["affine"] @ matrices.to(device)
    if "organs" in extra:
        extra["organs"] = _resampled(extra["organs"], matrices, matrices.new_zeros(len(matrices)), nearest=True)
    for number, end in enumerate(ends[1:]):
        if end in plans:
            views[number] = changed(views[number], *plans[end])
            extra["affine" + end] = extra["affine" + end] @ plans[end][0].to(device)
        else:
            starts = batch.extra["start" + end]
            views[number] = cut_inside(pixels, starts, views[number].shape[-3:])
            extra["affine" + end] = affine_inside(extra["affine"], starts)
    return replace(moved, pixels=pixels, views=tuple(views), extra=extra)


def cut_inside(
    pixels: Int16[torch.Tensor, "b 1 d h w"], starts: Int[torch.Tensor, "b n 3"], size: Sequence[int]
) -> Int16[torch.Tensor, "b n 1 s t u"]:
    """Return crops of `size` voxels of each volume; `starts` are on the CPU."""
    import torch

    crops = [
        torch.stack([own[:, d : d + size[0], h : h + size[1], w : w + size[2]] for d, h, w in places])
        for own, places in zip(pixels, starts.tolist(), strict=True)
    ]
    return torch.stack(crops)


def affine_inside(
    affine: Float[torch.Tensor, "b 4 4"], starts: Int[torch.Tensor, "b n 3"]
) -> Float[torch.Tensor, "b n 4 4"]:
    """Return the affines of crops that begin at voxel `starts`."""
    own = affine[:, None].repeat(1, starts.shape[1], 1, 1)
    places = starts.to(affine).unsqueeze(-1)
    own[..., 3:] += own[..., :3] @ places
    return own


def changed(
    voxels: Int16[torch.Tensor, "*n 1 d h w"],
    matrices: Float[torch.Tensor, "*n 4 4"],
    values: Float[torch.Tensor, "*n 5"],
) -> Int16[torch.Tensor, "*n 1 d h w"]:
    """Return changed volumes on the device of `voxels`; what is to be done lies on the CPU."""
    import torch

    flat, plans = voxels.reshape(-1, *voxels.shape[-3:]), values.reshape(-1, 5)
    out = _resampled(flat, matrices.reshape(-1, 4, 4), plans[:, 4])
    for own, (factor, summand, noise, key, _) in zip(out, plans.tolist(), strict=True):
        if (factor, summand, noise) == (1, 0, 0):
            continue
        made = own.float() * factor + summand
        if noise:
            generator = torch.Generator(own.device).manual_seed(int(key))
            made += noise * torch.randn(own.shape, generator=generator, device=own.device)
        own.copy_(_as_stored(made))
    return out.view(voxels.shape)


def _as_stored(made: Float[torch.Tensor, "*s"]) -> Float[torch.Tensor, "*s"]:
    return made.round_().clamp_(-32768, 32767)


def _resampled(
    voxels: Integer[torch.Tensor, "n d h w"],
    matrices: Float[torch.Tensor, "n 4 4"],
    outside: Float[torch.Tensor, " n"],
    *,
    nearest: bool = False,
) -> Integer[torch.Tensor, "n d h w"]:
    """Return volumes of which each voxel comes from where its matrix says."""
    import torch

    out = torch.empty_like(voxels)
    mixed = []
    for number, matrix in enumerate(matrices.numpy()):
        axes = np.rint(matrix[:3, :3])
        if np.array_equal(axes, matrix[:3, :3]):
            out[number] = _turned(voxels[number], axes)
        else:
            mixed.append(number)
    step = max(1, CHUNK_VOXELS // voxels[0].numel())
    for first in range(0, len(mixed), step):
        some = mixed[first : first + step]
        out[some] = _interpolated(voxels[some], matrices[some], outside[some], nearest).to(out.dtype)
    return out


def _turned(voxels: Integer[torch.Tensor, "d h w"], axes: Float[np.ndarray, "3 3"]) -> Integer[torch.Tensor, "d h w"]:
    """Return a volume with its axes exchanged and reversed: column j of `axes` is where axis j of the result runs."""
    order = np.abs(axes).argmax(axis=0)
    turned = voxels.permute(*order.tolist())
    return turned.flip([axis for axis in range(3) if axes[order[axis], axis] < 0])


def _interpolated(
    voxels: Integer[torch.Tensor, "n d h w"],
    matrices: Float[torch.Tensor, "n 4 4"],
    outside: Float[torch.Tensor, " n"],
    nearest: bool,
) -> Float[torch.Tensor, "n d h w"]:
    """Return volumes by trilinear interpolation, or with the nearest values."""
    import torch
    from torch.nn import functional

    shape = torch.tensor(voxels.shape[-3:], dtype=torch.float64)
    half = torch.diag(torch.cat([(shape - 1) / 2, torch.ones(1, dtype=torch.float64)]))
    half[:3, 3] = (shape - 1) / 2  # from -1..1, first to last voxel, to voxels
    order = [2, 1, 0, 3]  # grid_sample names the last axis first
    theta = (torch.linalg.inv(half) @ matrices @ half)[:, order][:, :, order][:, :3]
    grid = functional.affine_grid(theta.float().to(voxels.device), [len(voxels), 1, *voxels.shape[-3:]], True)
    mode = "nearest" if nearest else "bilinear"
    filling = outside.float().view(-1, 1, 1, 1).to(voxels.device)
    made = functional.grid_sample((voxels.float() - filling)[:, None], grid, mode, "zeros", True)[:, 0]
    return _as_stored(made + filling)
