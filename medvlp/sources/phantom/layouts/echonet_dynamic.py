"""The raw layout of EchoNet-Dynamic; see `data_cards/echonet_dynamic.md`."""

from __future__ import annotations

from collections.abc import Iterable

from medvlp.sources.phantom.examples import Example, ExampleTracing
from medvlp.sources.phantom.layouts._video import write_video
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import ImageRef, Mask, Study

_HEADER = ("FileName", "EF", "ESV", "EDV", "FrameHeight", "FrameWidth", "FPS", "NumberOfFrames", "Split")


class EchonetDynamicLayout(Layout):
    """Loops, their table, and tracings with the long axis first; every fourth loop has none."""

    needs = "heart"

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies by name."""
        rows: list[list[object]] = []
        lines: list[list[object]] = []
        studies = []
        for example in examples:
            assert example.clip is not None
            name, clip = f"0X{example.number:016X}", example.clip
            write_video(self.root / f"Videos/{name}.avi", clip.frames, clip.fps)
            esv, edv = (round(value, 4) for value in clip.volumes_ml)
            ef = round(100 * (edv - esv) / edv, 4)
            frames, height, width = clip.frames.shape[:3]
            rows.append([name, ef, esv, edv, height, width, int(clip.fps), frames, example.split.upper()])
            traced = clip.tracings if example.number % 4 != 3 else ()
            for tracing in traced:
                own = (tracing.axis, *tracing.chords)
                lines += [[f"{name}.avi", *line, tracing.frame] for line in own]
            values = {"EF": ef, "ESV": esv, "EDV": edv}
            if traced:
                values |= {"frame_ED": float(traced[0].frame), "frame_ES": float(traced[1].frame)}
            studies.append(
                Study(name, name, (ImageRef(name, f"Videos/{name}.avi", "US"),), values=values, split=example.split,
                      masks=tuple(_mask(name, tracing) for tracing in traced))
            )  # fmt: skip
        self.put_csv("FileList.csv", _HEADER, rows)
        self.put_csv("VolumeTracings.csv", ("FileName", "X1", "Y1", "X2", "Y2", "Frame"), lines)
        return studies


def _mask(name: str, tracing: ExampleTracing) -> Mask:
    there = [(x, y) for x, y, _, _ in tracing.chords]
    back = [(x, y) for _, _, x, y in tracing.chords[::-1]]
    return Mask(name, "left_ventricle", points=(*there, *back), frame=tracing.frame)
