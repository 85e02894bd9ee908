"""Reports sorted by organs: which sentence is about what, what stands for silence, and what is normal."""

from __future__ import annotations

import pytest

from medvlp.text.organs import ORGANS, normal_text, organ_parts, organ_texts, organs_of

REPORT = (
    "CLINICAL INFORMATION: Liver transplant.\n"
    "FINDINGS: The heart is enlarged. No pleural effusion or pneumothorax. "
    "A 5 mm nodule is seen in the right upper lobe. Hiatal hernia at the lower end of the esophagus. "
    "The aorta is unremarkable. A cyst in the left kidney.\n"
    "IMPRESSION: Lung nodule."
)


@pytest.mark.parametrize(
    ("sentence", "organs"),
    [
        ("There is a small pericardial effusion.", ("heart",)),
        ("Bilateral pleural effusions.", ("lung",)),
        ("Small effusion on the left.", ("lung",)),
        ("Thyroid nodule.", ("thyroid",)),
        ("Calcified nodules in the spleen and liver.", ("liver", "spleen")),
        ("Wall calcifications in the aorta and the coronary arteries.", ("heart", "aorta")),
        ("Gallbladder is normal.", ("gallbladder",)),
        ("Bladder is normal.", ("bladder",)),
        ("Main pulmonary artery is normal in calibre.", ()),
        ("Comparison is made with the prior study.", ()),
        ("Fracture of the left fifth rib.", ("bone",)),
    ],
)
def test_a_sentence_goes_to_the_organs_that_it_names(sentence: str, organs: tuple[str, ...]) -> None:
    assert organs_of(sentence) == organs


def test_organs_have_their_sentences_and_silence_has_the_template() -> None:
    names = ("lung", "heart", "esophagus", "aorta", "liver", "kidney")
    lung, heart, esophagus, aorta, liver, kidney = organ_texts(REPORT, names)
    assert lung.text == (
        "No pleural effusion or pneumothorax. A 5 mm nodule is seen in the right upper lobe. Lung nodule."
    )
    assert not lung.normal
    assert (heart.text, heart.normal) == ("The heart is enlarged.", False)
    assert (esophagus.text, esophagus.normal) == ("Hiatal hernia at the lower end of the esophagus.", False)
    assert (aorta.normal, aorta.mentioned) == (True, True)
    # What the patient came for is no finding of the images.
    assert (liver.text, liver.normal, liver.mentioned) == ("liver shows no significant abnormalities.", True, False)
    assert not kidney.normal  # nothing that the lexicon knows, so nothing that could be called normal
    assert liver.text == normal_text("liver")


@pytest.mark.parametrize(
    ("sentence", "normal"),
    [
        ("The lungs are clear.", True),
        ("No consolidation in either lung.", True),
        ("The lungs are not clear.", False),
        ("Possible consolidation in the left lung.", False),
        ("No consolidation, but a nodule in the left lung.", False),
    ],
)
def test_normal_is_what_denies_findings_or_praises(sentence: str, normal: bool) -> None:
    (lung,) = organ_texts(sentence, ("lung",))
    assert lung.normal == normal


def test_parts_are_those_that_are_spoken_of() -> None:
    parts = organ_parts(REPORT)
    assert len(parts) == 5
    assert all(part in {text.text for text in organ_texts(REPORT, ORGANS)} for part in parts)
    assert organ_parts("") == ()
