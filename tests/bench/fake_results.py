"""Writes a small results folder in the layout of the runner, with predictions that agree with its scores."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from medvlp.types import Predictions

STRENGTH = {
    "medclip_nih_iu": 2.6,
    "convirt_phantom": 1.9,
    "random:resnet18": 1.0,
    "metadata": 1.1,
    "image_statistics": 1.7,
    "majority": 0.0,
}
PATH = "/home/jane/secret/runs/medclip"


def _score(metric: str, label: str, value: float, n: int) -> dict[str, object]:
    half = 0.7 / np.sqrt(n)
    return {
        "metric": metric,
        "label": label,
        "value": value,
        "low": value - half,
        "high": min(value + half, 1.0),
        "n": n,
    }


def write_results(root: Path, labels: tuple[str, ...] = ("Pneumonia",), n: int = 260, examples: int = 6) -> Path:
    """Two encoders, four baselines; one failed and one missing setting; zero-shot only with a text tower."""
    rng = np.random.default_rng(0)
    task = {
        "name": "nih_pneumonia",
        "version": 2,
        "dataset": "nih_chestxray14",
        "uncertain": "ignore",
        "not_mentioned": "ignore",
        "views": [],
        "labels": [
            {
                "name": label,
                "positive": label,
                "negative": "No Finding",
                "prompts": {
                    "positive": [f"findings of {label.lower()}"],
                    "negative": ["the lungs are <clear> & normal"],
                },
            }
            for label in labels
        ],
    }
    suite = {
        "name": "nih_mini",
        "version": 3,
        "description": "Pneumonia against no finding on a small part of ChestX-ray14.",
        "bootstrap_resamples": 1000,
        "bootstrap_seed": 0,
        "alpha": 0.05,
        "entries": [
            {
                "task": "nih_pneumonia",
                "protocols": ["linear_probe", "fine_tune"],
                "fractions": [0.01, 0.1, 1.0],
                "seeds": [0, 1],
                "draws": 2,
            },
            {"task": "nih_pneumonia", "protocols": ["zero_shot"], "fractions": [1.0]},
            {"task": "nih_pneumonia", "protocols": ["few_shot"], "shots": [1, 5, 20]},
        ],
    }
    tested = list(STRENGTH)[:3]
    encoders = [
        {"name": name, "spec": PATH if i == 0 else name, "hash": "e" * 64, "has_text": i == 0}
        for i, name in enumerate(tested)
    ]
    record = {
        "suite": suite,
        "tasks": {"nih_pneumonia": task},
        "stores": {"nih_chestxray14": {"hash": "5" * 64, "name": "nih", "images": 755, "declared_images": 112120}},
        "encoders": encoders,
        "versions": {"medvlp": "0.1.0", "torch": "2.11.0"},
        "git": "0123456789abcdef",
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "suite.json").write_text(json.dumps(record))
    truth = (rng.random((n, len(labels))) < 0.45).astype(float)
    truth[rng.random(truth.shape) < 0.05] = np.nan
    patients = [f"PATIENT{i // 2:05d}" for i in range(n)]
    samples = [f"{i:08d}_000.png" for i in range(n)]
    noise = rng.normal(size=truth.shape)

    def cell(encoder: str, protocol: str, fraction: float, shots: int | None, seed: int, draw: int) -> None:
        info = {
            "task": "nih_pneumonia",
            "task_version": 2,
            "dataset": "nih_chestxray14",
            "encoder": encoder,
            "protocol": protocol,
            "fraction": fraction,
            "seed": seed,
            "draw": draw,
            "shots": shots,
            "hashes": {
                "store": "5" * 64,
                "split": f"{fraction}-{draw}",
                "encoder": "e" * 64,
                "task": "7" * 64,
                "config": "c" * 64,
            },
        }
        amount = fraction if not shots else shots / 100
        strength = STRENGTH[encoder] * (0.55 + 0.45 * (1 + np.log10(amount) / 2)) + (
            0.4 if protocol == "fine_tune" else 0
        )
        own = np.random.default_rng([seed, draw, len(encoder), int(1000 * amount)]).normal(size=truth.shape)
        logits = strength * (np.nan_to_num(truth) - 0.5) + 0.7 * noise + 0.7 * own
        predictions = Predictions(
            samples, patients, labels, truth, 1 / (1 + np.exp(-(logits if STRENGTH[encoder] else 0 * logits)))
        )
        folder = root / "cells" / hashlib.sha256(json.dumps(info).encode()).hexdigest()
        folder.mkdir(parents=True)
        predictions.to_frame().to_parquet(folder / "predictions.parquet")
        scores = []
        for k, label in enumerate(labels):
            kept = np.isfinite(truth[:, k])
            y, s = truth[kept, k], predictions.scores[kept, k]
            scores.append(_score("auroc", label, float(roc_auc_score(y, s)), int(kept.sum())))
            scores.append(_score("average_precision", label, float(average_precision_score(y, s)), int(kept.sum())))
            scores.append(_score("f1", label, float(np.mean((s > 0.5) == y)), int(kept.sum())))
            scores.append(_score("ece", label, float(abs(s.mean() - y.mean()) + 0.02), int(kept.sum())))
        for metric in ("auroc", "average_precision", "f1", "ece"):
            of = [s for s in scores if s["metric"] == metric]
            scores.append(_score(metric, "macro", float(np.mean([s["value"] for s in of])), n))
        result = {
            **{
                key: info[key]
                for key in (
                    "task",
                    "task_version",
                    "dataset",
                    "encoder",
                    "protocol",
                    "fraction",
                    "seed",
                    "draw",
                    "hashes",
                )
            },
            "n": n,
            "scores": scores,
            "thresholds": dict.fromkeys(labels, 0.4321),
            "best_params": {"c": 0.1},
            "versions": record["versions"],
            "git": record["git"],
        }
        (folder / "cell.json").write_text(json.dumps(info))
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "run.json").write_text(json.dumps({"started": 1795375800.0, "seconds": 1.25, "device": "cpu"}))

    for encoder in STRENGTH:
        for protocol in ("linear_probe", "fine_tune"):
            if protocol == "fine_tune" and encoder not in tested:
                continue
            for fraction in (0.01, 0.1, 1.0):
                if (encoder, protocol, fraction) in {
                    ("convirt_phantom", "fine_tune", 0.01),
                    ("convirt_phantom", "fine_tune", 0.1),
                }:
                    continue
                cell(encoder, protocol, fraction, None, 0, 0)
                if fraction < 1 and encoder in tested:
                    cell(encoder, protocol, fraction, None, 0, 1)
    for encoder in tested:
        for shots in (1, 5, 20):
            cell(encoder, "few_shot", 1.0, shots, 0, 0)
    cell("medclip_nih_iu", "zero_shot", 1.0, None, 0, 0)
    failure = {
        "task": "nih_pneumonia",
        "protocol": "fine_tune",
        "fraction": 0.01,
        "encoder": "convirt_phantom",
        "what": f"The weights in {PATH}/model.safetensors are cut off.",
        "where": f"{PATH}/model.safetensors",
    }
    (root / "failures.jsonl").write_text(json.dumps(failure) + '\n{"half a line')
    comparisons = [
        {
            "task": "nih_pneumonia",
            "protocol": protocol,
            "fraction": 1.0,
            "shots": None,
            "metric": "auroc",
            "label": label,
            "a": a,
            "b": b,
            "difference": d,
            "low": d - 0.04,
            "high": d + 0.04,
            "p": p,
            "p_adjusted": min(1.0, 6 * p),
            "n": n,
            "test": "DeLong",
        }
        for protocol in ("linear_probe", "fine_tune")
        for label in (*labels, "macro")
        for a, b, d, p in (
            ("medclip_nih_iu", "random:resnet18", 0.17, 0.00001),
            ("random:resnet18", "convirt_phantom", -0.09, 0.004),
            ("medclip_nih_iu", "convirt_phantom", 0.03, 0.21),
        )
    ]
    (root / "comparisons.json").write_text(json.dumps(comparisons))
    (root / "examples" / "nih_chestxray14").mkdir(parents=True)
    index = []
    for i in range(examples):
        yy, xx = np.mgrid[0:256, 0:256] / 256
        chest = (
            60 + 120 * np.exp(-((xx - 0.5) ** 2) / 0.02) - 40 * np.exp(-(((xx - 0.3) ** 2) + (yy - 0.5) ** 2) / 0.03)
        )
        chest = np.clip(chest + rng.normal(0, 6, chest.shape), 0, 255).astype(np.uint8)
        Image.fromarray(chest).save(root / "examples" / "nih_chestxray14" / f"{samples[i]}")
        values = {label: None if np.isnan(truth[i, k]) else truth[i, k] for k, label in enumerate(labels)}
        index.append(
            {
                "sample_id": samples[i],
                "file": f"nih_chestxray14/{samples[i]}",
                "dataset": "nih_chestxray14",
                "labels": values,
            }
        )
    (root / "examples" / "index.json").write_text(json.dumps(index))
    return root
