"""The raw layout of Cholec80; see `data_cards/cholec80.md`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from medvlp.errors import UserError
from medvlp.sources.phantom.examples import Example, ExampleClip
from medvlp.sources.phantom.layouts._video import write_video
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import ImageRef, Study

_NUMBERS = {"train": range(1, 33), "val": range(33, 41), "test": range(41, 81)}
_FPS = 25
_REST = 7
"""Frames of the video after its last full second."""


class Cholec80Layout(Layout):
    """Videos or pictures, a phase row per frame, a tool row per second but the last."""

    needs = "surgery"
    editions: ClassVar[dict[str, tuple[object, ...]]] = {
        "edition": ("videos", "frames"),
        "split": ("40/40", "32/8/40"),
    }

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies by video and frame.

        Raises:
            UserError: A split has more examples than videos.
        """
        free = {split: list(numbers) for split, numbers in _NUMBERS.items()}
        studies = []
        for example in examples:
            assert example.clip is not None
            if not free[example.split]:
                raise UserError("Cholec80 has 80 videos, and there are more operations.", fix="Write fewer studies.")
            name = f"video{free[example.split].pop(0):02d}"
            self._tables(name, example.clip)
            split = "train" if example.split == "val" and self.options["split"] == "40/40" else example.split
            for second in range(len(example.clip.frames)):
                image = self._image(name, second)
                labels = self._labels(example.clip, second)
                studies.append(Study(image.image_id, name, (image,), labels=labels, split=split))
            self._pixels(name, example.clip)
        return sorted(studies, key=lambda study: study.study_id)

    def _frames(self, clip: ExampleClip) -> int:
        return _FPS * (len(clip.frames) - 1) + _REST

    def _tables(self, name: str, clip: ExampleClip) -> None:
        phases, tools = self.card.adapter["phases"], self.card.adapter["tools"]
        rows = [(frame, phases[clip.phases[frame // _FPS]]) for frame in range(self._frames(clip))]
        self.put_csv(f"phase_annotations/{name}-phase.txt", ("Frame", "Phase"), rows, delimiter="\t")
        seen = [
            (second * _FPS, *(int(tool in clip.tools[second]) for tool in range(len(tools))))
            for second in range(len(clip.frames) - 1)
        ]
        self.put_csv(f"tool_annotations/{name}-tool.txt", ("Frame", *tools), seen, delimiter="\t")

    def _image(self, name: str, second: int) -> ImageRef:
        image_id = f"{name}_{second * _FPS:06d}"
        if self.options["edition"] == "videos":
            return ImageRef(image_id, f"videos/{name}.mp4", "ES", frame=second * _FPS)
        return ImageRef(image_id, self._picture(name, second), "ES")

    def _picture(self, name: str, second: int) -> str:
        return f"frames/{name}/{name}_{second + 1:06d}.png"

    def _labels(self, clip: ExampleClip, second: int) -> dict[str, float]:
        phases, tools = self.card.adapter["phases"], self.card.adapter["tools"]
        labels = {name: float(place == clip.phases[second]) for place, name in enumerate(phases)}
        last = second == len(clip.frames) - 1
        return labels | {
            name: float("nan") if last else float(place in clip.tools[second]) for place, name in enumerate(tools)
        }

    def _pixels(self, name: str, clip: ExampleClip) -> None:
        if self.options["edition"] == "frames":
            for second, frame in enumerate(clip.frames):
                self.put_image(self._picture(name, second), frame)
            return
        repeated = np.repeat(clip.frames, _FPS, axis=0)[: self._frames(clip)]
        write_video(self.root / f"videos/{name}.mp4", repeated, float(_FPS))
