"""VELVET-Med as a whole: its terms from plain steps, its text tower, refusals, answers and heat maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from medvlp.errors import UserError
from medvlp.methods.velvet_med import VelvetMed
from medvlp.models.fusion import FusionSizes, TextFusion
from medvlp.models.tribert import SentenceTower
from tests.methods.volumes import SWIN, TEXT, TEXTS, batch_of, method_of

OPTIONS = {
    "fusion": {"layers": 1, "heads": 2, "ffn": 32, "dropout": 0.0},
    "local_size": [32, 32, 64],
    "rotation_plane": ["d", "h"],
    "hidden_share": 0.3,
}
SIZE = {"size": [32, 32, 64]}


def velvet(options: dict[str, Any] | None = None, **changes: Any) -> VelvetMed:
    config: dict[str, Any] = {
        "name": "velvet_med",
        "image": {"kind": "volume", "family": "swin", "args": SWIN, "input": SIZE},
        "text": {**TEXT, "pool": "cls"},
        "projection": {"dim": 16},
        "objectives": {"contrast": {"dim": 16}},
        "options": OPTIONS | (options or {}),
    }
    made = method_of(config | changes)
    assert isinstance(made, VelvetMed)
    return made


def only(*names: str) -> dict[str, dict[str, float]]:
    terms = ("report", "sentence", "word", "matching", "mlm", "contrast", "rotation", "inpainting", "text_mlm")
    return {name: {"weight": float(name in names)} for name in terms}


@pytest.fixture(scope="module")
def model() -> VelvetMed:
    return velvet().eval()


def encoded(model: VelvetMed, texts: list[str]) -> Any:
    return model.encode_text(model.context.tokenise(texts, 48, sentences=True))


def test_every_term_has_something_to_work_on_and_the_report_term_is_plain(model: VelvetMed) -> None:
    batch = batch_of(model)
    torch.manual_seed(0)
    terms = model.losses(batch)
    assert set(terms) == set(only())
    counts = {name: float(count) for name, (_, count) in terms.items()}
    assert counts["matching"] == 12
    assert min(counts.values()) > 0
    assert all(value > 0 for value, _ in terms.values())
    with torch.no_grad():
        image = model.project_image(model.encode_stored(batch.pixels))
        text = model.project_text(encoded(model, list(TEXTS)))
    logits = image @ text.T / model.temperature
    rows = torch.arange(4)
    expected = [functional.cross_entropy(side, rows, label_smoothing=0.1) for side in (logits, logits.T)]
    torch.testing.assert_close(terms["report"][0], torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)


def test_a_second_reading_of_the_texts_is_contrasted_and_the_first_has_the_hidden_words(model: VelvetMed) -> None:
    batch, other = batch_of(model), batch_of(model)
    other.text_augmented = model.context.tokenise([TEXTS[2], TEXTS[0], TEXTS[1], TEXTS[3]], 48, sentences=True)
    torch.manual_seed(0)
    terms = model.losses(batch)
    torch.manual_seed(0)
    changed = model.losses(other)
    assert not torch.allclose(changed["sentence"][0], terms["sentence"][0])
    assert changed["mlm"][1] == terms["mlm"][1] > 0


def test_a_term_without_weight_is_not_computed_nor_asked_for() -> None:
    model = velvet(objectives=only("report", "sentence"))
    demands = model.demands(model.config)
    assert demands.volume_views == ()
    assert demands.hidden_share == 0
    assert demands.sentences
    assert set(model.losses(batch_of(model))) == {"report", "sentence"}


def test_single_sentences_stand_beside_the_reports() -> None:
    """The report term is the mean of the plain contrast and of that with two sentences each, shared ones positive."""
    options = {"report_sentences": 2}
    both, plain = velvet(options, objectives=only("report")).eval(), velvet(objectives=only("report")).eval()
    plain.load_state_dict(both.state_dict())
    assert both.demands(both.config).candidates == 2
    batch = batch_of(both)
    told = ["No effusion.", "Mild emphysema.", "no  effusion.", "A nodule.", "A mass.", "A mass.", "Edema.", "Clear."]
    batch.candidates = both.context.tokenise(told, 48, sentences=True)
    found = both.losses(batch)["report"]
    with torch.no_grad():
        image = both.project_image(both.encode_stored(batch.pixels))
        text = both.project_text(encoded(both, told))
    words = [" ".join(sentence.lower().split()) for sentence in told]
    right = torch.tensor([[word in words[2 * i : 2 * i + 2] for word in words] for i in range(4)]).float()
    logits = image @ text.T / both.temperature
    sides = [
        -(target / target.sum(1, keepdim=True) * side.log_softmax(1)).sum(1).mean()
        for side, target in ((logits, right), (logits.T, right.T))
    ]
    expected = (plain.losses(batch_of(plain))["report"][0] + torch.stack(sides).mean()) / 2
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-5)
    assert found[1] == 8 + 12


def test_pretext_tasks_read_as_many_volumes_as_they_are_told() -> None:
    """Their terms are those of a batch of the first two volumes; the others stay those of all four."""
    few, whole = velvet({"pretext_volumes": 2}).eval(), velvet().eval()
    whole.load_state_dict(few.state_dict())
    batch = batch_of(few)
    first = batch_of(whole)
    first.views = [first.views[0][:2]]
    torch.manual_seed(0)
    terms = few.losses(batch)
    torch.manual_seed(0)
    expected = whole.losses(first)
    for name, (value, count) in expected.items():
        torch.testing.assert_close(terms[name][0], value, rtol=1e-6, atol=0)
        assert terms[name][1] == count
    assert terms["rotation"][1] == 4
    with pytest.raises(UserError, match="pretext_volumes is 1"):
        velvet({"pretext_volumes": 1})
    with pytest.raises(UserError, match="report_sentences is -1"):
        velvet({"report_sentences": -1})


def test_without_crops_or_in_an_impossible_plane_it_refuses(model: VelvetMed) -> None:
    batch = batch_of(model)
    batch.views = ()
    with pytest.raises(UserError, match="local crop"):
        model.losses(batch)
    for plane in (["d", "w"], ["d", "d"], ["d", "x"]):
        with pytest.raises(UserError, match="cannot be turned"):
            velvet({"rotation_plane": plane})
    vit = {"kind": "volume", "family": "vit", "name": "vit_tiny_patch16_224", "patch": [8, 8, 8], "input": SIZE}
    with pytest.raises(UserError, match="three stages"):
        velvet(image={**vit, "args": {"depth": 1, "embed_dim": 24, "num_heads": 2}})
    with pytest.raises(UserError, match="'max'"):
        velvet(objectives={"word": {"reduce": "max"}})
    with pytest.raises(UserError, match="pool: cls"):
        velvet(text={**TEXT, "pool": "mean"})


def test_the_temperature_is_held_unless_the_official_code_is_asked_for() -> None:
    model, legacy = velvet(objectives=only("report")), velvet({"legacy_temperature": True}, objectives=only("report"))
    for own in (model, legacy):
        with torch.no_grad():
            own.temperature.fill_(-0.05)
    assert float(model.logit_scale.detach()) == pytest.approx(1000.0)
    assert float(model.temperature.detach()) == pytest.approx(0.001)
    assert float(legacy.logit_scale.detach()) == pytest.approx(-20.0)


def test_a_report_is_read_alone_as_in_a_batch_and_by_its_sentences(model: VelvetMed) -> None:
    together, alone = encoded(model, list(TEXTS)), encoded(model, [TEXTS[2]])
    length = alone.tokens.shape[1]
    torch.testing.assert_close(together.tokens[2, :length], alone.tokens[0], rtol=1e-4, atol=1e-5)
    joined = encoded(model, [TEXTS[2].replace(".", "")])
    assert not torch.allclose(joined.pooled, alone.pooled, atol=1e-3)


def test_the_text_tower_is_built_again_from_its_own_description(model: VelvetMed) -> None:
    assert model.config.text is not None
    tower = model.text_encoder
    assert isinstance(tower, SentenceTower)
    described = model.config.text.model_copy(update={"architecture": tower.architecture})
    again = SentenceTower(described, model.context.vocab_size, model.context.pad_id, 50, 200)
    again.load_state_dict(tower.state_dict(), strict=True)
    assert tower.model.embeddings.token_type_embeddings.num_embeddings == 51
    assert tower.model.get_input_embeddings().num_embeddings == model.context.vocab_size + 50


def test_answers_and_heat_maps_have_their_shapes(model: VelvetMed) -> None:
    batch = batch_of(model, rows=2)
    with torch.no_grad():
        features = model.encode_stored(batch.pixels)
        answers = model.zero_shot(features, [["effusion"], ["nodule"]], [["no effusion"], ["no"]], encode_with(model))
        maps = model.heat_map(model.normalised(batch.pixels), ["effusion", "large heart"], encode_with(model))
    assert answers.shape == (2, 2)
    assert ((answers > 0) & (answers < 1)).all()
    assert maps.shape == (2, 2, 4, 4, 8)
    assert (maps.abs() <= 1).all()
    assert maps.std() > 0


def encode_with(model: VelvetMed) -> Any:
    return lambda texts: encoded(model, list(texts))


def test_masks_of_rows_and_of_keys_mean_the_same_to_the_fusion() -> None:
    torch.manual_seed(0)
    fusion = TextFusion(FusionSizes(16, 2, 2, 32, 0.0, 1e-12)).eval()
    text, image = torch.randn(2, 5, 16), torch.randn(2, 3, 16)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    by_key, _ = fusion(text, mask, image)
    by_row, _ = fusion(text, mask[:, None].expand(-1, 5, -1), image)
    torch.testing.assert_close(by_row[mask], by_key[mask])
    rows = mask[:, None].expand(-1, 5, -1).clone()
    rows[1, 2, 3:] = False
    other, _ = fusion(text, rows, image)
    assert not torch.allclose(other[1, 2], by_row[1, 2])
