"""M-FLAG, ViLLA and LLM2CLIP4CXR as wholes: what they compute from a batch, what they refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from medvlp.config.methods import MethodConfig
from medvlp.errors import UserError
from medvlp.methods import METHODS
from medvlp.methods.base import Method, Progress
from medvlp.methods.context import MethodContext
from medvlp.methods.villa import _statements
from medvlp.objectives.contrastive import info_nce
from medvlp.objectives.redundancy import alignment, orthogonality
from medvlp.objectives.regions import attribute_nce
from medvlp.text.tokenizer import Tokenizer
from medvlp.types import Batch, TextFeatures

NAN = float("nan")
TEXTS = [
    "There is a large pleural effusion. The heart is normal.",
    "Mild cardiomegaly. No pleural effusion.",
    "The lungs are clear.",
    "There is a pleural effusion. Cardiomegaly.",
]
LABELS = ("Pleural Effusion", "Cardiomegaly")
VALUES = torch.tensor([[1.0, 0.0], [0.0, 1.0], [NAN, -1.0], [1.0, 1.0]])
SMALL: dict[str, Any] = {
    "image": {
        "name": "resnet10t",
        "args": {"channels": [8, 8, 16, 16], "stem_width": 4},
        "input": {"size": 64, "mean": [0.4], "std": [0.2]},
    },
    "text": {"hidden": 16, "layers": 2, "heads": 2, "max_tokens": 24, "dropout": 0.0, "pool": "mean"},
    "projection": {"dim": 8},
    "options": {},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "m_flag": {},
    "villa": {"mapping_share": 0.0, "mapping_trains_image": True, "head": 8, "region_size": 2},
    "llm2clip": {"pool": {"latents": 4, "heads": 2}, "instruction": "find the image"},
}
PROJECTIONS = {"m_flag": {"dim": 8, "hidden": 8, "batch_norm": "both"}}
NAMES = tuple(OPTIONS)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([*TEXTS, "find the image there is findings of no"] * 3, 120)


def method(
    name: str, tokenizer: Tokenizer, labels: tuple[str, ...] = LABELS, tap: str = "layer3", **options: Any
) -> Method:
    torch.manual_seed(0)
    fields = {**SMALL, "options": {**OPTIONS[name], **options}, "projection": PROJECTIONS.get(name, {"dim": 8})}
    if name == "villa":
        fields["image"] = {**SMALL["image"], "tap": tap}
    if name == "m_flag":
        fields["text"] = {**SMALL["text"], "freeze": True, "dropout": 0.5}
    config = MethodConfig.model_validate({"name": name, **fields})
    return METHODS.get(name)(config, MethodContext.of(tokenizer, labels))


def batch(tokenizer: Tokenizer) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8, generator=generator)
    return Batch(torch.arange(4), pixels, labels=VALUES, text=MethodContext.of(tokenizer).tokenise(TEXTS, 24))


def encoder_of(model: Method, tokenizer: Tokenizer) -> Any:
    def encode(prompts: Any) -> TextFeatures:
        return model.encode_text(MethodContext.of(tokenizer).tokenise(prompts, 24))

    return encode


@pytest.mark.parametrize("name", NAMES)
def test_every_term_counts_and_every_parameter_gets_a_gradient(tokenizer: Tokenizer, name: str) -> None:
    model = method(name, tokenizer).train()
    terms = model(batch(tokenizer))
    assert all(value.isfinite() and value != 0 and count > 0 for value, count in terms.values())
    torch.stack([value for value, _ in terms.values()]).sum().backward()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_pads_change_nothing(tokenizer: Tokenizer, name: str) -> None:
    model, data = method(name, tokenizer).eval(), batch(tokenizer)
    text = data.text
    assert text is not None
    wide = replace(text, ids=functional.pad(text.ids, (0, 3)), mask=functional.pad(text.mask, (0, 3)))
    with torch.no_grad():
        before, after = model(data), model(replace(data, text=wide))
    for term, (value, count) in before.items():
        torch.testing.assert_close(after[term][0], value, rtol=1e-4, atol=1e-6)
        assert after[term][1] == count


@pytest.mark.parametrize("name", NAMES)
def test_zero_shot_gives_probabilities_that_depend_on_their_own_image_alone(tokenizer: Tokenizer, name: str) -> None:
    model, data = method(name, tokenizer).eval(), batch(tokenizer)
    asked: Any = ([["pleural effusion"], ["cardiomegaly", "heart"]], [["no effusion"], ["no heart"]])
    encode = encoder_of(model, tokenizer)
    with torch.no_grad():
        together = model.zero_shot(model.encode_stored(data.pixels), *asked, encode)
        alone = model.zero_shot(model.encode_stored(data.pixels[2:3]), *asked, encode)
    assert together.shape == (4, 2)
    assert ((together > 0) & (together < 1)).all()
    torch.testing.assert_close(together[2:3], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_texts_is_refused(tokenizer: Tokenizer, name: str) -> None:
    with pytest.raises(UserError, match="needs texts"):
        method(name, tokenizer)(replace(batch(tokenizer), text=None))


def test_m_flag_is_its_plain_steps(tokenizer: Tokenizer) -> None:
    model, data = method("m_flag", tokenizer).train(), batch(tokenizer)
    with torch.no_grad():
        terms = model(data)
        pooled = model.image_encoder.backbone((data.pixels.float() / 255 - 0.4) / 0.2)
        text = model.text_encoder(data.text).pooled
        aligned, _ = alignment(model.image_projection.layers(pooled), model.text_projection.layers(text))
        torch.testing.assert_close(terms["alignment"][0], aligned, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(terms["orthogonality"][0], orthogonality(pooled)[0], rtol=1e-4, atol=1e-6)


def test_m_flags_frozen_text_is_without_dropout_unless_legacy_asks_for_it(tokenizer: Tokenizer) -> None:
    data = batch(tokenizer)
    for legacy in (False, True):
        model = method("m_flag", tokenizer, legacy_text_dropout=legacy).train()
        assert not any(p.requires_grad for p in model.text_encoder.parameters())
        with torch.no_grad():
            first, second = (model.encode_text(data.text).pooled for _ in range(2))
        assert torch.equal(first, second) == (not legacy)
        assert not model.eval().text_encoder.model.training


def test_llm2clip_is_a_contrast_of_cosines_and_legacy_one_of_raw_products(tokenizer: Tokenizer) -> None:
    data = batch(tokenizer)
    for legacy in (False, True):
        model = method("llm2clip", tokenizer, legacy_logits=legacy).eval()
        with torch.no_grad():
            image = model.image_projection.layers(model.encode_stored(data.pixels).pooled)
            norm, projection = model.text_projection
            text = projection.layers(norm(model.text_encoder(data.text).pooled))
            scale = model.log_scale.squeeze() if legacy else model.log_scale.exp().squeeze()
            logits = scale * (image @ text.T if legacy else torch.cosine_similarity(image[:, None], text[None], dim=2))
            own = torch.arange(4)
            expected = (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
            torch.testing.assert_close(model(data)["info_nce"][0], expected, rtol=1e-5, atol=1e-6)


def test_llm2clip_reads_the_instruction_before_the_text_without_a_second_beginning(tokenizer: Tokenizer) -> None:
    model = method("llm2clip", tokenizer)
    tower = model.text_encoder
    assert tokenizer.tokens(tower.instruction.tolist())[:2] == ["[CLS]", "find"]
    assert tower.lead == 1
    assert "[SEP]" not in tokenizer.tokens(tower.instruction.tolist())
    assert (
        method("llm2clip", tokenizer, instruction="").text_encoder.instruction.tolist()
        == tower.instruction[:1].tolist()
    )


def test_villas_mapping_is_its_plain_steps(tokenizer: Tokenizer) -> None:
    model, data = method("villa", tokenizer, shared_head=False).eval(), batch(tokenizer)
    with torch.no_grad():
        image = model.encode_stored(data.pixels)
        regions = model._regions(image).unflatten(0, (4, 9))
        attributes = []
        for name in ("pleural effusion", "cardiomegaly"):
            prompts = encoder_of(model, tokenizer)([f"there is {name}", name, f"findings of {name}"])
            mean = functional.normalize(model.text_projection.layers(prompts.pooled), dim=1).mean(0)
            attributes.append(mean / mean.norm())
        best = torch.stack(
            [torch.cosine_similarity(head(regions), a, dim=2).amax(1)
             for head, a in zip(model.heads, attributes, strict=True)], dim=1
        )  # fmt: skip
        present, lacking = VALUES == 1, (VALUES == 0) | VALUES.isnan()
        expected, count = attribute_nce(best, present, lacking, 0.07)
        value, terms = model(data)["mapping"]
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    assert terms == count == 4


def test_villas_contrast_is_that_of_the_plain_steps_where_all_texts_differ(tokenizer: Tokenizer) -> None:
    """One region that is the whole image: no two texts of the batch are equal, so plain InfoNCE is the reference."""
    grid = {"rows": 1, "columns": 1, "overlap": 0.0}
    model, data = method("villa", tokenizer, grid=grid, region_size=4).eval(), batch(tokenizer)
    told = {0: TEXTS[0].split(". ")[0] + ".", 1: "Mild cardiomegaly.", 3: TEXTS[3]}
    with torch.no_grad():
        image = model.project_image(model.encode_stored(data.pixels))
        reports = model.project_text(model.encode_text(data.text))
        region_texts = model.project_text(encoder_of(model, tokenizer)([told[0], told[1]]))
        value, count = model(replace(data, labels=torch.tensor([[1.0, NAN], [NAN, 1.0], [0.0, 0.0], [0.0, 0.0]])))[
            "region"
        ]
        vectors, texts = torch.cat([image, image[:2]]), torch.cat([reports, region_texts])
        expected, _ = info_nce(vectors, texts, torch.tensor(1 / 0.07))
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-5)
    assert count == 12


def test_regions_that_say_the_same_are_not_each_others_negatives(tokenizer: Tokenizer) -> None:
    """With a margin that takes every region, the nine regions of image 0 all have one text: nine positives each."""
    model, data = method("villa", tokenizer, margin=4.0).eval(), batch(tokenizer)
    data = replace(data, labels=torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    with torch.no_grad():
        image = model.encode_stored(data.pixels)
        vectors = torch.cat([model.project_image(image), model.image_projection(model._regions(image)[:9])])
        sentence = model.project_text(encoder_of(model, tokenizer)(["There is a large pleural effusion."]))
        texts = torch.cat([model.project_text(model.encode_text(data.text)), sentence.expand(9, -1)])
        logits = vectors @ texts.T / 0.07
        same = torch.block_diag(torch.eye(4), torch.ones(9, 9))
        sides = [-(same / same.sum(1, keepdim=True) * x.log_softmax(1)).sum(1).mean() for x in (logits, logits.T)]
        value, count = model(data)["region"]
    torch.testing.assert_close(value, sum(sides) / 2, rtol=1e-4, atol=1e-6)
    assert count == 26


def test_sentences_state_what_they_say_is_there() -> None:
    stated = _statements(TEXTS[1], (*LABELS, "normal"))
    assert stated == {1: ("Mild cardiomegaly.",)}
    assert _statements("The heart is normal.", ("normal",)) == {0: ("The heart is normal.",)}


def test_the_first_stage_trains_heads_alone(tokenizer: Tokenizer) -> None:
    model = method("villa", tokenizer, mapping_share=0.5, mapping_trains_image=False).train()
    model.begin_step(Progress(4, 10, 5))
    terms = model(batch(tokenizer))
    assert (terms["region"][0].item(), terms["region"][1].item()) == (0.0, 0.0)
    torch.stack([value for value, _ in terms.values()]).sum().backward()
    moved = {key.split(".")[0] for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"heads"}
    model.begin_step(Progress(5, 10, 5))
    assert model(batch(tokenizer))["region"][1] > 0


def test_villas_zero_shot_answers_by_its_best_region(tokenizer: Tokenizer) -> None:
    model, data = method("villa", tokenizer).eval(), batch(tokenizer)
    encode = encoder_of(model, tokenizer)
    with torch.no_grad():
        image = model.encode_stored(data.pixels)
        found = model.zero_shot(image, [["effusion"]], [["no effusion"]], encode)
        texts = model.project_text(encode(["effusion", "no effusion"]))
        regions = model.image_projection(model._regions(image)).unflatten(0, (4, 9))
        candidates = torch.cat([model.project_image(image)[:, None], regions], dim=1)
        expected = ((candidates @ texts.T).amax(1) / 0.07).softmax(1)[:, :1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_villa_counts_nothing_without_labels_that_are_present(tokenizer: Tokenizer) -> None:
    model, data = method("villa", tokenizer), batch(tokenizer)
    terms = model(replace(data, labels=torch.full((4, 2), NAN)))
    assert (terms["mapping"][0].item(), terms["mapping"][1].item()) == (0.0, 0.0)
    assert terms["region"][1] == 8
    sure = method("villa", tokenizer, not_mentioned="unknown")
    _, lacking = sure._attributes_of(VALUES)
    assert lacking.tolist() == [[False, True], [True, False], [False, False], [False, False]]


def test_villa_without_labels_or_layer3_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="the data has none"):
        method("villa", tokenizer, labels=())
    with pytest.raises(UserError, match="layer3"):
        method("villa", tokenizer, tap="layer2")
    with pytest.raises(UserError, match="needs labels"):
        method("villa", tokenizer)(replace(batch(tokenizer), labels=None))
