"""RadCLIP's format against transformers' CLIPModel, of which its file is the state dict; here a small one."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from medvlp.config.load import load_config
from medvlp.types import TextBatch
from medvlp.zoo.release import FOLDER, Release
from medvlp.zoo.released import ReleasedModel, load_released

TEXT = {
    "vocab_size": 40,
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 9,
    "bos_token_id": 38,
    "eos_token_id": 39,
    "pad_token_id": 39,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.fixture(scope="module")
def official() -> CLIPModel:
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8))
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn(value.shape) * 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def ours(official: CLIPModel, tmp_path_factory: pytest.TempPathFactory) -> ReleasedModel:
    written = ", ".join(f"{name}: {value}" for name, value in TEXT.items())
    release = load_config(
        FOLDER / "radclip.yaml",
        (
            "image.args={global_pool: token, img_size: 28, embed_dim: 16, depth: 2, num_heads: 2}",
            f"text.config={{{written}}}",
            "heads.image.layers=[{linear: [16, 8], bias: false}]",
            "heads.text.layers=[{linear: [12, 8], bias: false}]",
        ),
        Release,
    )
    state = official.state_dict()
    file = tmp_path_factory.mktemp("radclip") / "pytorch_model.bin"
    torch.save({**state, "text_model.embeddings.position_ids": torch.arange(9)[None]}, file)
    return load_released(release, file)[0]


def test_images_and_texts_are_those_of_clip(official: CLIPModel, ours: ReleasedModel) -> None:
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[38, 5, 6, 39, 39], [38, 7, 8, 9, 39]])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    with torch.no_grad():
        expected = official(input_ids=ids, attention_mask=mask.long(), pixel_values=pixels)
        image = ours.project_image(ours.encode_image(pixels))
        text = ours.project_text(ours.encode_text(TextBatch(ids, mask)))
        logits = ours.logit_scale * image @ text.T
    torch.testing.assert_close(image, expected.image_embeds)
    torch.testing.assert_close(text, expected.text_embeds)
    torch.testing.assert_close(logits, expected.logits_per_image)
