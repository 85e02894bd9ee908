"""The card of a fine-tuned model: what it is for, what it was made of, how well it does, and what it is not for.

Guarantee: every number is one of `result.json`; no name of a patient, path or machine is in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from medvlp.config.preprocessing import AnyPreprocessing, ClipPreprocessing, Preprocessing, VolumePreprocessing
from medvlp.html.numbers import count, decimal, interval
from medvlp.tasks._answerer import Answerer

if TYPE_CHECKING:
    from medvlp.config.finetune import FinetuneConfig
    from medvlp.tasks._tuned import TunedModel

SHOWN = {
    "classification": ("auroc", "average_precision", "sensitivity", "specificity", "ece"),
    "segmentation": ("dice", "iou", "hd95_mm", "hd95_pixels", "specificity"),
    "volume_segmentation": ("dice", "iou", "hd95_mm", "nsd_mm", "specificity"),
    "report_generation": ("finding_f1_micro", "finding_f1", "bleu_1", "bleu_4", "rouge_l", "cider"),
    "vqa": ("accuracy", "accuracy_closed", "accuracy_open", "unseen_answers"),
}
TASK_NAMES = {
    "classification": "Classification",
    "segmentation": "Segmentation",
    "volume_segmentation": "Segmentation",
    "report_generation": "Report generation",
    "vqa": "Question answering",
}
RULES = {
    "f1": "the highest F1",
    "youden": "the highest sum of sensitivity and specificity",
    "sensitivity": "a sensitivity of {target:g}",
    "specificity": "a specificity of {target:g}",
}


def model_card(config: FinetuneConfig, model: TunedModel, result: dict[str, Any]) -> str:
    """Return the card in Markdown."""
    return "\n".join(_lines(config, model, result)) + "\n"


def unit_of(config: FinetuneConfig) -> str:
    """Return what a sample is, where it is more or less than an image."""
    return "questions" if config.task == "vqa" else "studies"


def rule_of(config: FinetuneConfig) -> str:
    """Return how thresholds were chosen, in words."""
    return RULES[config.decision.threshold].format(target=config.decision.target or 0)


def _lines(config: FinetuneConfig, model: TunedModel, result: dict[str, Any]) -> Iterator[str]:
    record, scope, pixels = result["record"], model.scope, model.preprocessing
    labels = ", ".join(model.label_names)
    name = TASK_NAMES[config.task]
    yield f"# {name} of {labels}" if 0 < len(labels) < 80 else f"# {name}"
    yield ""
    yield f"An image encoder ({record['encoder']}) with a head, fine-tuned by medvlp {record['versions']['medvlp']}."
    yield from ("", "## Intended use", "")
    yield "Research on images like those below. Not a medical device: not for diagnosis, triage or treatment."
    yield "`medvlp predict RUN FILES --out predictions.csv` applies it as it was validated, and refuses an image whose"
    yield "header says that it is of another modality, view or body part."
    yield from ("", "## Data", "")
    yield f"- Data set: {record['dataset']}, store {record['store_hash'][:16]}; splits: {record['split_rule']}."
    for split, found in record["samples"].items():
        studies = "" if found["samples"] == found["images"] else f"{count(found['samples'])} {unit_of(config)}, "
        yield f"- {split}: {count(found['images'])} images of {studies}{count(found['patients'])} patients."
    known = {"modalities": scope.modalities, "views": scope.views, "body parts": scope.body_parts}
    for name, values in known.items():
        yield f"- {name.capitalize()} of the training images: {', '.join(values) or 'not known'}."
    if labels:
        data = config.data
        yield f"- Uncertain labels: {data.uncertain}; labels that are not mentioned: {data.not_mentioned}."
    yield from ("", "## Scores on the test patients", "")
    coverage = f"{100 * (1 - config.alpha):g} %"
    yield f"With {coverage} intervals over patients. Nothing was chosen on these patients."
    yield ""
    yield from _scores(config, result)
    yield from ("", "## Answers", "")
    if model.decisions:
        yield f"Calibration on validation: {config.decision.calibration}. Of images with probability 0.3 about 30 % are"
        yield "positive where the finding is as frequent as there; where it is rarer or more frequent they are not."
        yield f"Thresholds were chosen on validation for {rule_of(config)}."
        yield ""
        for one in model.decisions:
            threshold = "no threshold" if one.threshold is None else f"yes from {decimal(one.threshold, 4)}"
            yield f"- {one.label}: {threshold}"
    elif config.task == "segmentation":
        yield "Masks on the pixels of each image."
    elif config.task == "volume_segmentation":
        yield "One label, or none, for each voxel, on the grid of each file."
    elif config.task == "vqa":
        yield from _about_answers(model, result)
    else:
        yield from _about_texts(config, result)
    yield from ("", "## Limits", "")
    if config.task == "vqa":
        yield "- A question of another wording than those of training, or about something else, may be answered in"
        yield "  words that sound sure: look at the image."
    elif labels:
        yield f"- It knows {labels} and nothing else; a label that was not asked is not a normal finding."
    else:
        yield "- A text may name what is not there and pass over what is, in words that sound sure: read the images."
    yield "- Images of other scanners, hospitals, countries or ages than those above may be answered wrongly."
    yield f"- Input: {_input(pixels)}."
    for note in result["notes"]:
        yield f"- {note}"
    yield from ("", "## How it was made", "")
    train = config.train
    length = f"{train.epochs} epochs" if train.steps is None else f"{train.steps} steps"
    yield f"- Encoder {'frozen' if train.freeze_encoder else 'trained with the head'}, seed {config.run.seed}, at most"
    yield f"  {length}; kept is the state with the best score on validation."
    yield "- Hashes and versions stand in `config.json`."


def _input(pixels: AnyPreprocessing) -> str:
    if isinstance(pixels, VolumePreprocessing):
        taken = pixels.input
        voxels = " × ".join(map(str, taken.size))
        if taken.spacing_mm is None:
            return f"volumes in {taken.intensity}, stretched to {voxels} voxels (d × h × w)"
        distances = " × ".join(f"{mm:g}" for mm in taken.spacing_mm)
        return f"volumes in {taken.intensity}, {voxels} voxels of {distances} mm (d × h × w)"
    if isinstance(pixels, ClipPreprocessing):
        clip = pixels.input
        return f"{clip.frames} frames from the middle, {clip.every} apart, {clip.size} pixels for the network"
    assert isinstance(pixels, Preprocessing)
    stored = pixels.stored
    return f"squares of {stored.size} pixels ({stored.aspect}), {pixels.input.size} for the network"


def _about_answers(model: TunedModel, result: dict[str, Any]) -> Iterator[str]:
    network = model.network
    assert isinstance(network, Answerer)
    learnt = network.learnt
    yield f"One of {len(learnt.closed)} answers to closed questions, or of {len(learnt.open)} to open ones: those of"
    yield f"the training questions, of {len(learnt.wordings)} wordings; no other answer can be given. The most frequent"
    yield f"training answer to questions of the kind would get accuracy {decimal(result['usual'].get('accuracy'))}."


def _about_texts(config: FinetuneConfig, result: dict[str, Any]) -> Iterator[str]:
    how = config.reports
    yield f"One text for each study, of at most {how.max_images} images: {' and '.join(how.sections)}, as the training"
    yield f"reports have them, at most {how.max_tokens} tokens, by beam search ({how.beams} beams). The most frequent"
    metric = "finding_f1_micro"
    yield f"training report, written for every test study, would get {metric} {decimal(result['usual'].get(metric))}."
    if how.experts is not None:
        yield "What the models in `experts/` find in each image is read beside it; an image on which one of them"
        yield "fails has no part in the text."


def _scores(config: FinetuneConfig, result: dict[str, Any]) -> Iterator[str]:
    there = {row["metric"] for row in result["scores"]}
    metrics = [name for name in SHOWN[config.task] if name in there]
    yield f"| label | {' | '.join(metrics)} |"
    yield f"|---|{'---|' * len(metrics)}"
    found = {(row["label"], row["metric"]): row for row in result["scores"]}
    labels = list(dict.fromkeys(row["label"] for row in result["scores"]))
    for label in labels if len(labels) > 2 else labels[:1]:  # the mean over one label is that label
        cells = [found.get((label, metric)) for metric in metrics]
        shown = [
            "–" if row is None else f"{decimal(row['value'])} ({interval(row['low'], row['high']) or 'no interval'})"
            for row in cells
        ]
        mean = "all findings" if config.task == "report_generation" else "mean over labels"
        yield f"| {mean if label == 'macro' else label} | {' | '.join(shown)} |"
