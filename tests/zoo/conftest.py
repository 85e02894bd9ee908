"""A saved MedCLIP run with a tokenizer, small enough for every test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medvlp.config.methods import MethodConfig
from medvlp.config.preprocessing import Preprocessing, StoredImageConfig
from medvlp.methods import METHODS
from medvlp.methods._artifact import save_model
from medvlp.methods.context import MethodContext
from medvlp.text.tokenizer import Tokenizer

TEXTS = ["no pneumonia is seen", "left pleural effusion", "the heart is normal", "right lower lobe pneumonia"]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer.train(TEXTS * 4, 128)
    config = MethodConfig.model_validate(
        {
            "name": "medclip",
            "image": {"name": "resnet18", "input": {"size": 48, "mean": [0.45], "std": [0.3]}},
            "text": {"hidden": 16, "layers": 2, "heads": 2, "max_tokens": 10},
            "projection": {"dim": 8},
        }
    )
    torch.manual_seed(0)
    method = METHODS.get("medclip")(config, MethodContext.of(tokenizer, ["Pneumonia"]))
    with torch.no_grad():
        # timm starts the last norm of each block at 0; without this the blocks would not take part.
        for name, parameter in method.named_parameters():
            if name.endswith("bn2.weight"):
                parameter.fill_(0.7)
    folder = tmp_path_factory.mktemp("runs") / "trial"
    save_model(
        folder / "model",
        method,
        preprocessing=Preprocessing(stored=StoredImageConfig(size=64), input=config.image.input),
        tokenizer=tokenizer,
        record={},
    )
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five PNG files of different sizes and shapes, one of them 16-bit."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = []
    for number, (height, width) in enumerate([(90, 70), (64, 64), (48, 120), (200, 150), (80, 81)]):
        dtype = np.uint16 if number == 3 else np.uint8
        pixels = rng.integers(0, np.iinfo(dtype).max, (height, width)).astype(dtype)
        pixels[height // 3 : height // 2] = np.iinfo(dtype).max * number // 5
        paths.append(folder / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths
