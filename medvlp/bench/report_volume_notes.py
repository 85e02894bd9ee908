"""What the methods section of a report says of tasks on volumes and on studies of clips.

Guarantee: every sentence follows from the task's configuration, and says where official code does otherwise.
"""

from __future__ import annotations

from typing import Any


def volume_text(task: dict[str, Any]) -> str | None:
    """Return the text of a task on volumes; None of another task."""
    if task.get("type") == "volume_segmentation":
        return _segmentation(task)
    return _grounding(task) if task.get("type") == "volume_grounding" else None


def _segmentation(task: dict[str, Any]) -> str:
    config, how = task.get("volume_segmentation", {}), task.get("fine_tune", {})
    head = {
        "unetr": "the decoder of UNETR",
        "swin_unetr": "the decoder of SwinUNETR",
        "linear": "one linear map, enlarged,",
    }.get(config.get("decoder"), "the decoder of UNETR (a plain ViT) or SwinUNETR (others)")
    spacing = config.get("spacing_mm")
    windows = (
        f"Windows of the encoder's input at {' × '.join(f'{value:g}' for value in spacing)} mm (d × h × w) slide over "
        f"the volume, overlapping by {config.get('overlap', '–')} and weighted by a Gaussian."
        if spacing
        else "A volume is covered by windows at the distance of voxels of the encoder's input, or as a whole."
    )
    split = (
        " The data set's validation volumes are the test, because its test has no label maps; the state is chosen on "
        "training patients set aside, where much published code chooses it on the volumes that it reports."
        if config.get("test_split") == "val"
        else ""
    )
    return (
        f"One of {', '.join(label['name'] for label in task.get('labels', []))}, or background, for each voxel, by "
        f"{head} on the encoder's maps, trained with the encoder frozen or tuned (its rate "
        f"{how.get('encoder_lr_ratio', '–')} times the head's); the state of the best mean Dice on validation is kept. "
        f"{windows}{split} Scores are on the voxels of the file, of each volume on its own, then averaged: Dice, IoU, "
        "the 95th percentile of the Hausdorff distance (HD95, mm) and normalised surface Dice (NSD, within "
        f"{config.get('tolerance_mm', '–')} mm) over the volumes with the structure; one that is missed altogether "
        "counts with 0 and with the diagonal of the volume. Specificity is the share of the volumes without the "
        "structure in which nothing is outlined."
    )


def _grounding(task: dict[str, Any]) -> str:
    return (
        f"Heat maps of {', '.join(label['name'] for label in task.get('labels', []))} against their outlines, over the "
        "volumes that have one, on an even grid of cells over the whole volume. Pointing: the structure touches the "
        "cell with most evidence; chance is the share of the cells that it touches. AUROC of cells: the chance that a "
        "cell that it touches has more evidence than one that it does not; what an encoder does not see has least."
    )


def reading_text(how: dict[str, Any]) -> str:
    """Return the text of reading by retrieval, given its section of the task."""
    near = (
        "whose texts lie nearest to the study in the space that both share"
        if how.get("by") == "texts"
        else "whose clips have the nearest features"
    )
    return (
        f"{', '.join(how.get('questions', []))} of each study, read as the mean of the training studies {near}; how "
        f"many answer together ({', '.join(map(str, how.get('neighbours', [])))}) is chosen on the validation split. "
        "Baselines without an encoder go by their features. Chance is the error of the mean of the training studies, "
        "whatever the study shows, and the gain is how much smaller the error is than that one's, study by study. A "
        "study of which nothing is read counts with that mean."
    )
