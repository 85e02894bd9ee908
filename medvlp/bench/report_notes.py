"""What a report says in words: warnings that stand on top, and the methods paragraph.

Guarantee: a warning is computed from the results, never written by hand; the methods name the policies in force.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from medvlp.bench.report_charts import label_pairs, read_predictions
from medvlp.bench.report_data import Results
from medvlp.bench.report_scores import LOWER_IS_BETTER, METRICS, Group, is_baseline
from medvlp.bench.report_volume_notes import reading_text, volume_text
from medvlp.html.numbers import count, decimal, interval, percent
from medvlp.metrics.classification import ECE_BINS

SHORTCUTS = {
    "metadata": "metadata alone (view, age, sex, image size)",
    "image_statistics": "simple image statistics (brightness, histogram, 16×16 pixels)",
    "majority": "the majority class",
    "location_prior": "the place where a finding usually is, without looking at the image,",
}
FEW_PATIENTS, FEW_POSITIVES = 200, 50
CORRECTIONS = {
    "holm": "Holm's method (the chance of any false finding)",
    "benjamini_hochberg": "Benjamini and Hochberg's method (the share of false findings among those called)",
}
MOST_FINDINGS = 5
FINDING_NAMES = {
    "Leak": "The data leak.",
    "Overlap": "Data sets overlap.",
    "Conflict": "Labels contradict each other.",
    "Duplicates": "Images stand twice.",
    "Lists": "Split lists have faults.",
}
"""Kinds of findings of an audit -> headline."""


def warnings(results: Results) -> list[tuple[str, str]]:
    """Return (headline, sentence) pairs, the most serious first."""
    return [
        *_leaks(results),
        *_mixed(results),
        *_preprocessing(results),
        *_shortcuts(results),
        *_subset(results),
        *_small(results),
        *_missing(results),
        *_not_audited(results),
    ]


def _leaks(results: Results) -> Iterator[tuple[str, str]]:
    """What the audit found in the data, and how many settings it touches."""
    findings = [str(text) for text in results.leaks.get("audit", {}).get("findings", ())]
    for text in findings[:MOST_FINDINGS]:
        kind, _, sentence = text.partition(": ")
        yield FINDING_NAMES.get(kind, kind), sentence[:1].upper() + sentence[1:]
    if len(findings) > MOST_FINDINGS:
        yield "More findings.", f"{len(findings) - MOST_FINDINGS} more stand in leaks.json."
    marked = [g for g in results.groups if g.leaks]
    if marked:
        counts = Counter(text for g in marked for text in g.leaks)
        said = " ".join(f"In {k}: {text}" for text, k in counts.most_common(MOST_FINDINGS))
        done = sum(bool(g.cells) for g in results.groups)
        yield "Numbers are touched by leaks.", f"{len(marked)} of {done} settings are marked with ‡. {said}"


def _not_audited(results: Results) -> Iterator[tuple[str, str]]:
    if not results.leaks:
        yield "The data were not audited.", "Whether test images were seen in training is not known."
    elif results.leaks.get("audit", {}).get("error"):
        yield "The data were not audited.", str(results.leaks["audit"]["error"])
    unknown = [name for name, training in results.leaks.get("encoders", {}).items() if not training.get("known")]
    if unknown:
        yield (
            "Leaks of an encoder cannot be excluded.",
            f"What {', '.join(unknown)} {'was' if len(unknown) == 1 else 'were'} trained on is not written down.",
        )


def _mixed(results: Results) -> Iterator[tuple[str, str]]:
    if results.stale:
        yield (
            "Older cells are left out.",
            f"{results.stale} cells have another store, task definition or settings than the suite has now.",
        )
    for key, what, by in (("store", "prepared stores", "dataset"), ("task", "task definitions", "task")):
        seen: dict[str, set[str]] = {}
        for cell in results.cells:
            value = (cell.info.get("hashes") or {}).get(key)
            about = str(cell.info.get(by))
            if key == "task" and results.tasks.get(about, {}).get("per_encoder"):
                about += f" with {cell.info.get('encoder')}"  # its settings are the encoder's own
            if value:
                seen.setdefault(about, set()).add(str(value))
        for about, values in seen.items():
            if len(values) > 1:
                yield (
                    "Numbers do not compare.",
                    f"Cells of {about} come from {len(values)} different {what}; run the suite again.",
                )


def _preprocessing(results: Results) -> Iterator[tuple[str, str]]:
    """Encoders that see images made otherwise than those they were trained on."""
    for encoder in results.encoders:
        if other := encoder.get("other_preprocessing"):
            yield (
                "An encoder sees unfamiliar images.",
                f"{encoder.get('name')} was trained on images made otherwise than those of {encoder.get('dataset')}: "
                f"{'; '.join(other)}.",
            )


def _full(results: Results) -> dict[tuple[str, str], list[Group]]:
    found: dict[tuple[str, str], list[Group]] = {}
    for group in results.groups:
        if group.cells and group.setting.fraction == 1 and not group.setting.shots:
            found.setdefault((group.setting.task, group.setting.protocol), []).append(group)
    return found


def _shortcuts(results: Results) -> Iterator[tuple[str, str]]:
    """Baselines that need no image content and still score as high as the best encoder of the task."""
    full = _full(results)
    for task in dict.fromkeys(task for task, _ in full):
        metric = results.primary(task)
        groups = [g for (name, _), found in full.items() if name == task for g in found]
        labels = dict.fromkeys(s.label for g in groups for s in g.scores if s.metric == metric)
        label = "macro" if "macro" in labels else next(iter(labels), "macro")
        scored = [(g, s) for g in groups if (s := g.score(metric, label)) is not None]
        tested = [(g, s) for g, s in scored if not is_baseline(g.setting.encoder)]
        if not tested:
            continue
        sign = -1 if metric in LOWER_IS_BETTER else 1
        best, top = max(tested, key=lambda pair: sign * (pair[1].value or 0))
        seen = set()
        for group, score in sorted(scored, key=lambda pair: -sign * (pair[1].value or 0)):
            kind = group.setting.encoder.split(":")[0]
            if kind not in SHORTCUTS or kind in seen or score.value is None or top.value is None:
                continue
            seen.add(kind)
            value = f"{METRICS.get(metric, metric)} {decimal(score.value)} ({interval(score.low, score.high)})"
            other = f"{best.setting.encoder} reaches {decimal(top.value)} ({interval(top.low, top.high)})"
            if sign * score.value >= sign * top.value:
                yield (
                    "A shortcut does as well as the encoders.",
                    f"{task}: {SHORTCUTS[kind]} gives {value}; the best encoder, {other}. "
                    f"The {'place' if kind == 'location_prior' else 'label'} can be told without reading the anatomy.",
                )
            elif score.overlaps(top):
                yield (
                    "A shortcut comes close.",
                    f"{task}: {SHORTCUTS[kind]} gives {value}; the intervals overlap with the best encoder's: {other}.",
                )


def _subset(results: Results) -> Iterator[tuple[str, str]]:
    for name, store in results.stores.items():
        have, declared = store.get("images"), store.get("declared_images")
        if isinstance(have, int) and isinstance(declared, int) and have < declared:
            share = percent(have / declared)
            yield (
                "A part of the data set.",
                f"{name}: {count(have)} of {count(declared)} images ({share}); the numbers do not compare with those "
                "of the full set.",
            )


def _small(results: Results) -> Iterator[tuple[str, str]]:
    few, rare_labels = [], []
    for task in dict.fromkeys(g.setting.task for g in results.groups if g.cells):
        cell = next(g.cells[0] for g in results.groups if g.setting.task == task and g.cells)
        frame = read_predictions(cell)
        if frame is None:
            continue
        patients = frame["patient_id"].nunique()
        if patients < FEW_PATIENTS:
            few.append(f"{task} ({patients} patients)")
        labels = [column.removeprefix("label:") for column in frame.columns if column.startswith("label:")]
        rare = {label: k for label in labels if (k := int((label_pairs(frame, label)[0] == 1).sum())) < FEW_POSITIVES}
        if rare:
            listed = ", ".join(f"{label} ({k})" for label, k in sorted(rare.items(), key=lambda pair: pair[1])[:6])
            more = f" and {len(rare) - 6} more" if len(rare) > 6 else ""
            rare_labels.append(f"{task}: {listed}{more}")
    if few:
        yield "Few patients.", f"Small differences cannot be told from chance in the test split of {', '.join(few)}."
    if rare_labels:
        yield "Few positive samples.", f"Fewer than {FEW_POSITIVES} positive test samples in {'; '.join(rare_labels)}."


def _missing(results: Results) -> Iterator[tuple[str, str]]:
    planned = [g for g in results.groups if not g.reason.startswith("not applicable")]
    missing = [g for g in planned if not g.cells]
    failed = sum(g.reason.startswith("failed") for g in missing)
    waiting = sum(g.reason == "not run" for g in missing)
    if failed or waiting:
        yield (
            "The table is not complete.",
            f"Of {len(planned)} planned settings {failed} failed and {waiting} have not been run; "
            "run the same command again to fill them in.",
        )
    if any(not g.pooled for g in results.groups):
        yield (
            "Seeds are not summed up yet.",
            "The run was interrupted before its last step: where a setting has several cells, the mean is shown with "
            "an interval that spans those of the cells.",
        )


def methods_text(results: Results) -> list[str]:
    """Return the paragraphs that say how the numbers were made."""
    suite = results.suite
    resamples, seed, alpha = suite.get("bootstrap_resamples"), suite.get("bootstrap_seed"), suite.get("alpha", 0.05)
    drawn = f" ({count(resamples)} resamples, seed {seed})" if resamples else ""
    correction = CORRECTIONS.get(str(suite.get("correction")), CORRECTIONS["holm"])
    paragraphs = [
        f"Every score is computed from kept predictions on the test split. Intervals are {results.level} bootstrap "
        f"intervals over patients, not images{drawn}, bias-corrected and accelerated, and widened where few patients "
        "carry a score: all images of a patient enter or leave together. Those of calibration errors are basic ones, "
        "with what chance alone adds taken off. Where a setting has several seeds or label subsets, "
        "the value is their mean, and their variance components are added to that of the patients. There is no "
        "interval where a single patient carries a class.",
        "Encoders are compared on the same test patients, pair by pair: AUROC by DeLong's test over patients, other "
        "metrics by a permutation test in which two encoders exchange a patient's answers. p values are corrected for "
        f"the number of comparisons by {correction}; a difference counts as shown when the corrected p is below "
        f"{alpha:g}. In the leaderboard, ≈ marks values whose interval overlaps that of the best: overlap is a coarse "
        "sign, the paired comparison is the test.",
        "Thresholds (F1) and penalties are chosen on the validation split and applied unchanged to the test split. The "
        f"expected calibration error and the reliability curves use {ECE_BINS} bins of equal width. ROC curves of "
        "several seeds are averaged at fixed false-positive rates; reliability curves pool them.",
    ]
    for name, task in results.tasks.items():
        paragraphs.append(_task_text(name, task))
    return paragraphs


def _task_text(name: str, task: dict[str, Any]) -> str:
    about = (
        f"Task {name}, version {task.get('version', '–')}, data set {task.get('dataset', '–')}, "
        f"{', '.join(task.get('views') or []) or 'all views'}. "
    )
    if task.get("type") == "retrieval":
        sections = " and ".join(task.get("retrieval", {}).get("sections", []))
        return about + (
            f"Every image looks for its report ({sections}) among all different reports of the split, every report for "
            "the images of its study; equal wordings are right answers to each other. Equal similarities count by "
            "expectation, as in random order. Recall@k is the share of queries with a right answer among the first k."
        )
    if task.get("type") == "image_retrieval":
        return about + (
            "Every image looks for images of other patients that have a finding "
            f"({', '.join(label['name'] for label in task.get('labels', []))}). Overlap@k is the mean over the first k "
            "of the findings of both images over those of either; an image without a finding overlaps with none. Equal "
            "similarities count by expectation, as in random order; chance is a random order of all."
        )
    if task.get("type") == "study_reading":
        return about + reading_text(task.get("study_reading", {}))
    if task.get("type") == "grounding":
        target = task.get("grounding", {}).get("target", "boxes")
        return about + (
            f"Heat maps of the findings ({', '.join(label['name'] for label in task.get('labels', []))}) against their "
            f"{target}, over the images that have one, on the stored square, to which maps are enlarged bilinearly. "
            "Pointing: the centre of the strongest cell lies in the region; chance is the share of the square that the "
            "region covers. IoU and Dice: of the part above a share of the map's range that was chosen on the "
            "validation split, one for each finding. The location prior is the mean region of the training images, "
            "whatever the image shows."
        )
    if task.get("type") == "segmentation":
        return about + _segmentation_text(task)
    if (of_volumes := volume_text(task)) is not None:
        return about + of_volumes
    if task.get("type") == "report_generation":
        config = task.get("reports", {})
        decoder = {"memory": "R2Gen's memory-driven decoder", "causal": "a causal language model"}
        references = (
            "References are cut to that length, and their rare words are unknown, as in BenchX."
            if config.get("legacy_references")
            else "References are whole."
        )
        return about + (
            f"A text for each study, from its first {config.get('max_images', '–')} images at most, as in the sections "
            f"{' and '.join(config.get('sections', []))} of its report, by "
            f"{decoder.get(config.get('decoder', {}).get('kind'), 'a decoder')} (beam search of width "
            f"{config.get('beams', '–')}, at most {config.get('max_tokens', '–')} tokens). {references} Findings are "
            "read from both texts by the rule labeler, statements in doubt counting as made: F1 of each finding that a "
            "reference has, their mean, and that of all together (micro). k nearest neighbours: the report of the "
            "training study with the nearest features; without features the most frequent one."
        )
    labels = []
    for label in task.get("labels", []):
        against = f"against {label['negative']}" if label.get("negative") else "present against absent"
        labels.append(f"{label['name']} ({label['positive']} {against})")
    policies = {"ignore": "left out", "positive": "taken as present", "negative": "taken as absent"}
    ignored = "as the task says"
    return about + (
        f"Labels: {', '.join(labels) or '–'}. "
        f"Uncertain labels are {policies.get(str(task.get('uncertain')), ignored)}, labels that are not mentioned "
        f"{policies.get(str(task.get('not_mentioned')), ignored)}."
    )


def _segmentation_text(task: dict[str, Any]) -> str:
    config, how = task.get("segmentation", {}), task.get("fine_tune", {})
    head = {"upernet": "UPerNet", "unet": "the decoder of U-Net"}.get(config.get("decoder"), "a dense head")
    tolerance = f"{config.get('tolerance_mm', '–')} mm, or {config.get('tolerance_pixels', '–')} pixels"
    chosen = {
        "dice": "mean Dice of the images with the structure",
        "pooled_dice": "Dice of all pixels together, background included",
    }.get(config.get("select"), "score")
    return (
        f"Masks of {', '.join(label['name'] for label in task.get('labels', []))} "
        f"({'filled boxes' if config.get('target') == 'boxes' else 'as drawn'}) by {head} on the encoder's maps, "
        f"trained with the encoder frozen or tuned (its rate {how.get('encoder_lr_ratio', '–')} times the head's); the "
        f"state of the best {chosen} on the validation split is kept. Scores are those of the stored square. "
        "Dice, IoU, the 95th percentile of the Hausdorff distance (HD95) and normalised surface Dice (NSD, within "
        f"{tolerance} where the spacing of an image is not known) are means over the images with the structure; one "
        "that is missed altogether counts with 0 and with the diagonal of the square. Specificity is the share of the "
        "images without the structure in which nothing is outlined. Pooled values add the pixels of all images and "
        "average structure and background, as BenchX does: with small structures the background makes up nearly half. "
        "The location prior outlines the same place in every image."
    )
