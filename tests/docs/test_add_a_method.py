"""The page about a method in a package of one's own: its files, installed by entry point, train and load."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tiny_store

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-a-method.md"
TINY = [
    "method.image.name=test_vit",
    "method.image.input.size=32",
    "method.text.hidden=32",
    "data.num_workers=0",
    "train.steps=3",
    "train.batch_size=8",
    "train.optimizer.warmup_steps=1",
    "train.log_every=1",
    "track.mlflow=false",
]
USE = """
import sys
import numpy as np
import medvlp
encoder = medvlp.load_encoder(sys.argv[1])
squares = np.random.default_rng(0).integers(0, 256, (2, 32, 32)).astype("uint8")
print(encoder.zero_shot_stored(squares, ["pneumonia"]).shape, encoder.heat_maps_stored(squares, ["edema"]).shape)
"""
LOSS = """
import torch
from our_methods.margin import margin_loss
torch.manual_seed(0)
image, text = (torch.nn.functional.normalize(torch.randn(5, 4), dim=1).requires_grad_() for _ in range(2))
for hardest in (False, True):
    value, count = margin_loss(image, text, 0.2, hardest)
    rows = []
    for i in range(5):
        wrong = [max(0.0, 0.2 + float(image[i] @ text[j]) - float(image[i] @ text[i])) for j in range(5) if j != i]
        rows.append(max(wrong) if hardest else sum(wrong) / 4)
    assert abs(float(value) - sum(rows) / 5) < 1e-6 and float(count) == 5
value, count = margin_loss(image[:1], text[:1], 0.2, False)
value.backward()
assert float(value) == 0 and float(count) == 0 and not image.grad.any()
print("equal")
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as an installer leaves it: the package, and the metadata that name its entry points."""
    folder = tmp_path_factory.mktemp("site")
    files = dict(re.findall(r"```(?:python|yaml|toml)\n# (\S+)\n(.*?)```", PAGE.read_text(), flags=re.DOTALL))
    assert set(files) == {"pyproject.toml", "our_methods/margin.yaml", "our_methods/margin.py", "margin-tiny.yaml"}
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "our_methods" / "__init__.py").touch()
    project = tomllib.loads(files["pyproject.toml"])["project"]
    described = folder / "our_methods-0.1.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1\n")
    groups = (
        f"[{group}]\n" + "".join(f"{name} = {module}\n" for name, module in entries.items())
        for group, entries in project["entry-points"].items()
    )
    (described / "entry_points.txt").write_text("\n".join(groups))
    return folder


def run(package: Path, *arguments: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_method_is_listed_trained_and_loaded(package: Path, tmp_path: Path) -> None:
    listed = run(package, "-m", "medvlp", "methods")
    assert re.search(r"│ margin +│ Margin, this page", listed)
    assert "method.options.hardest" in run(package, "-m", "medvlp", "methods", "margin")
    store = tiny_store.make_store(tmp_path)
    places = [f"data.store={store}", f"run.dir={tmp_path / 'run'}"]
    run(package, "-m", "medvlp", "pretrain", package / "margin-tiny.yaml", *places, *TINY)
    assert run(package, "-c", USE, tmp_path / "run").strip() == "torch.Size([2, 1]) (2, 1, 32, 32)"
    assert '"train/margin_count": 8.0' in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_the_loss_is_the_loop_over_pairs(package: Path) -> None:
    assert run(package, "-c", LOSS).strip() == "equal"
