"""What a method asks of every batch: the contract between methods and the loader.

Guarantee: a batch holds what is asked for, and the loader makes nothing that nobody asks for. The demands of a method
are a function of its configuration alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class View:
    """A further reading of each image, drawn on its own.

    Args:
        size: Its side in pixels.
        crop_scale: Share of the area that its crop keeps; None takes `data.augment.crop_scale`.
    """

    size: int
    crop_scale: tuple[float, float] | None = None


@dataclass(frozen=True)
class VolumeView:
    """A further reading of each volume, drawn on its own.

    Args:
        kind: inside: crops that lie within `pixels`, on its voxels; local: crops of the volume at the distance of
            voxels of the store, or at `input.spacing_mm` where that is given.
        size: Voxels along d, h, w.
        count: How many of each volume.
    """

    kind: Literal["inside", "local"]
    size: tuple[int, int, int]
    count: int = 1


@dataclass(frozen=True)
class Demands:
    """What every batch must hold.

    Args:
        reports: `text`.
        labels: `labels`.
        paired: Text row i belongs to image i; otherwise texts are drawn on their own, with labels.
        text_unit: The text of an image is its report, or one of its sentences, drawn anew each epoch; `part` draws the
            report half of the time, else what it says of one organ.
        sample_sentences: Of a report that is too long the first sentence and others drawn anew each epoch, in their
            order, in place of its beginning.
        sentences: `text.sentence_ids`.
        triplets: The ternary matrix of places and findings.
        concepts: Spans and rows of the concepts of each text, from the knowledge bank.
        group_size: Samples of a semantic group side by side, with captions of its concept; 0 is no groups.
        caption_share: Share of the texts of groups that are such captions; the others are those of the images.
        hidden_share: Share of the tokens that `text.hidden` hides, whole words at a time; 0 is none.
        hide_concepts: Hide whole concepts at a time; `spans` keeps the hidden ones, which a method must not show.
        candidates: Sentences of the text of each image, drawn anew each epoch, in `candidates`; 0 is none.
        image_scale: Side of `pixels` over that of the model input; the method makes the model input itself.
        views: Further readings of each image.
        study_images: Images of a study in `study`; 0 is none.
        region: Volumes: voxels of `pixels` along d, h, w in place of those of the model input.
        volume_views: Volumes: further readings, in `views`; `extra["start_I"]` `[b n 3]` is the first voxel of each
            crop of view I along d, h, w, in voxels of `pixels` (inside) or of the stored volume (local).
        organs: Volumes: structures of the label maps; `extra["organs"]` uint8 `[b d h w]` is 1 + the place of the
            structure here on the grid of `pixels`, else 0.
    """

    reports: bool = True
    labels: bool = False
    paired: bool = True
    text_unit: Literal["report", "sentence", "part"] = "report"
    sample_sentences: bool = False
    sentences: bool = False
    triplets: bool = False
    concepts: bool = False
    group_size: int = 0
    caption_share: float = 0.5
    hidden_share: float = 0.0
    hide_concepts: bool = False
    candidates: int = 0
    image_scale: int = 1
    views: tuple[View, ...] = ()
    study_images: int = 0
    region: tuple[int, int, int] | None = None
    volume_views: tuple[VolumeView, ...] = ()
    organs: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What a data set must offer, in words: reports, labels, triplets, concepts, groups, views."""
        asked = {
            "reports": self.reports,
            "labels": self.labels,
            "triplets": self.triplets,
            "concepts": self.concepts,
            "groups": self.group_size > 0,
            "views": self.study_images > 1,
        }
        return tuple(name for name, is_asked in asked.items() if is_asked)
