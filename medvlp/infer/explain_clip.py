"""Where, and when, in a clip does an encoder see what a text says?

Guarantee: maps lie on the frames, rows and columns of the file. Pictures and files hold pixels, maps and the given
texts alone: no path, nothing of a file's headers. All frames of a picture share one colour scale, unless each is asked
to have its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from medvlp.errors import UserError
from medvlp.infer.explain_volume import highest
from medvlp.infer.picture import Panel, picture
from medvlp.io.clip import read_grey_frames
from medvlp.progress import progress_bar
from medvlp.store.files import writing

if TYPE_CHECKING:
    from jaxtyping import Float32, Int

    from medvlp.zoo.clip_encoder import ClipEncoder

STRIP = 6
"""Frames of a picture."""


@dataclass(frozen=True)
class ExplainedClip:
    """One clip and one text.

    Args:
        clip: Path as given.
        text: What was looked for.
        probability: That of the text against its opposite; None where the encoder gives none.
        place: Frame, row and column of the file, from 0, with most evidence, of equal ones that nearest to the middle;
            None where there is no difference in the map.
        second: When that frame is shown; None where the file does not say how many frames a second has.
    """

    clip: Path
    text: str
    probability: float | None
    place: tuple[int, int, int] | None
    second: float | None


def explain_clips(
    encoder_spec: str,
    clips: Sequence[Path],
    texts: Sequence[str],
    out: Path,
    *,
    scale: Literal["shared", "each"] = "shared",
    pixels: int = 384,
    device: str = "auto",
) -> list[ExplainedClip]:
    """Write heat maps of texts in clips: a picture and the values of each clip.

    `out` gets `clip_1.png` (a row for each text: frames that the encoder saw, among them the one with most evidence)
    and `clip_1.npz` (`texts`; `maps` [t f h w] on frames, rows and columns of the file, NaN where the encoder saw
    nothing; `seen`, the frames that it saw), and so on in the order of `clips`.

    Args:
        encoder_spec: As `medvlp.load_encoder` takes it; an encoder of clips.
        clips: Videos (AVI, MP4, MKV), or folders of numbered frames.
        texts: What is looked for.
        out: Folder.
        scale: One colour scale for all frames of a picture, or one for each.
        pixels: Longest side of a frame in the picture; 0 leaves frames at their own size.
        device: Where the encoder computes.

    Raises:
        UserError: No clip or text, the encoder has no heat maps or takes no clips, a file cannot be read, or `out`
            cannot be written.
    """
    from medvlp.zoo import load_encoder
    from medvlp.zoo.clip_encoder import ClipEncoder

    if not clips:
        raise UserError("There is no clip to explain.", "--clip", "Give videos or folders of frames.")
    encoder = load_encoder(encoder_spec, device=device)
    if not isinstance(encoder, ClipEncoder):
        raise UserError(
            f"The encoder '{encoder.name}' takes no clips.",
            "--clip",
            "Give --image or --volume, or an encoder of clips.",
        )
    texts = [text.strip() for text in texts]
    encoder.check_heat_maps(texts)
    found = []
    with progress_bar("explain", len(clips), "clips") as advance:
        for number, path in enumerate(clips, 1):
            found += _explained(encoder, path, texts, out / f"clip_{number}", scale, pixels)
            advance()
    return found


def _explained(
    encoder: ClipEncoder, path: Path, texts: Sequence[str], out: Path, scale: Literal["shared", "each"], pixels: int
) -> list[ExplainedClip]:
    """Write picture and values of one clip; `out` has no suffix."""
    clip = encoder.read(path)
    place, held = encoder.place_of(path, clip), encoder.preprocess(clip)[None]
    maps = place.on_video(encoder.token_heat_maps(held, texts)[0].cpu().numpy())
    chances: Sequence[float | None] = [None] * len(texts)
    if encoder.scores_text:
        chances = encoder.zero_shot_stored(held, texts)[0].double().cpu().tolist()
    peaks = [highest(own) for own in maps]
    shown = [_strip(place.taken, peak) for peak in peaks]
    grey = read_grey_frames(path, [frame for frames in shown for frame in frames])
    fps = None if clip.fps is None else clip.fps * int(clip.provenance["every"])
    rows = [_row(own, frames, grey, fps) for own, frames in zip(maps, shown, strict=True)]
    headings = [
        text if chance is None else f"{text} (p = {chance:.2f})" for text, chance in zip(texts, chances, strict=True)
    ]
    notes = ['p: against the text with "no" before it'] if encoder.scores_text else []
    notes.append(f"the encoder saw {len(place.taken)} of {len(maps[0])} frames")
    drawn = picture(rows, f"evidence by {encoder.heat_map_kind}", scale, pixels, notes, headings)
    file, values = out.with_suffix(".png"), out.with_suffix(".npz")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        drawn.save(file, format="PNG")
    with writing(values), values.open("wb") as stream:
        np.savez_compressed(stream, texts=np.array(texts), maps=maps, seen=place.taken)
    return [
        ExplainedClip(path, text, chance, peak, None if peak is None or fps is None else peak[0] / fps)
        for text, chance, peak in zip(texts, chances, peaks, strict=True)
    ]


def _strip(taken: Int[np.ndarray, " s"], peak: tuple[int, int, int] | None) -> list[int]:
    """Return frames evenly over those that were seen; that of the peak takes the place of the nearest one."""
    places = np.unique(np.rint(np.linspace(0, len(taken) - 1, STRIP)).astype(np.intp))
    frames = taken[places]
    if peak is not None:
        frames[np.abs(frames - peak[0]).argmin()] = peak[0]
    return [int(frame) for frame in frames]


def _row(
    own: Float32[np.ndarray, "f h w"],
    frames: Sequence[int],
    grey: Mapping[int, Float32[np.ndarray, "h w"]],
    fps: float | None,
) -> list[Panel]:
    """Return one panel for each frame; frames are counted from 0."""
    titles = [f"frame {frame}" + ("" if fps is None else f", {frame / fps:.2f} s") for frame in frames]
    return [Panel(grey[frame], own[frame], title) for frame, title in zip(frames, titles, strict=True)]
