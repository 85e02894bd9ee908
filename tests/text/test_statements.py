"""Sentences whose value or side was once read wrong: clauses, comparisons in time, hedges, lists, marks.

Each expectation is what a reader takes from the sentence, written down without regard to the rules.
"""

from __future__ import annotations

import pytest

from medvlp.text.statements import normalise
from medvlp.text.triplets import read_sentence_triplets

SENTENCES = [
    (
        "No right pleural effusion; small left pleural effusion.",
        "right pleural space: effusion 0; left pleural space: effusion 1",
    ),
    (
        "There is no tuberculosis, effusion, or mass; a 5 mm nodule is in the left upper lobe.",
        "lung: tuberculosis 0; pleural space: effusion 0; lung: mass 0; left upper lobe: nodule 1",
    ),
    (
        "No pneumothorax; pleural effusion; or consolidation.",
        "pleural space: pneumothorax 0; pleural space: effusion 0; lung: consolidation 0",
    ),
    (
        "No rib fracture or pneumothorax on the right; left clavicle fracture.",
        "rib: fracture 0; right pleural space: pneumothorax 0; left clavicle: fracture 1",
    ),
    ("Non-specific opacity in the lingula.", "lingula: opacity 1"),
    ("Non-displaced fracture of the left 5th rib.", "left 5th rib: fracture 1"),
    ("Non calcified nodule in the right upper lobe.", "right upper lobe: nodule 1"),
    ("Doubt pneumonia.", "lung: pneumonia -1"),
    ("Low likelihood of pneumonia.", "lung: pneumonia -1"),
    ("Without a doubt there is pneumonia.", "lung: pneumonia 1"),
    ("Nothing to suggest pneumothorax.", "pleural space: pneumothorax 0"),
    ("No longer seen is the left effusion.", "left pleural space: effusion 0"),
    ("The effusion, previously large, has now completely cleared.", "pleural space: effusion 0"),
    ("Opacity not previously seen.", "lung: opacity 1"),
    ("There is nodular opacity not present on the prior study.", "lung: nodule 1"),
    ("The previously noted nodule is not present today.", "lung: nodule 0"),
    ("The previously noted nodule is not well seen.", "lung: nodule -1"),
    ("Atypical infection is a possibility.", "lung: pneumonia -1"),
    ("Pneumothorax (-).", "pleural space: pneumothorax 0"),
    ("Consolidation?", "lung: consolidation -1"),
    (
        "No pneumothorax status post left chest tube removal.",
        "pleural space: pneumothorax 0; left pleural space: chest tube 0",
    ),
    ("No effusion \u2013 mild edema.", "pleural space: effusion 0; lung: edema 1"),
    ("Effusion - none.", "pleural space: effusion 0"),
    ("Atelectasis is favored over pneumonia.", "lung: atelectasis -1; lung: pneumonia -1"),
    (
        "Opacity is likely due to atelectasis and not pneumonia.",
        "lung: opacity 1; lung: atelectasis -1; lung: pneumonia 0",
    ),
    ("Minimal, if any, pleural effusion.", "pleural space: effusion -1"),
    ("No more than trace pleural effusion.", "pleural space: effusion -1"),
    ("The patient is at risk for aspiration.", ""),
    ("Pneumonia excluded.", "lung: pneumonia 0"),
    ("We cannot see any effusion.", "pleural space: effusion 0"),
    ("No new or worsening consolidation.", "lung: consolidation 0"),
    ("No worsening of the effusion.", "pleural space: effusion 1"),
    ("None of the opacities are new.", "lung: opacity 1"),
    ("Not all opacities have resolved.", "lung: opacity 1"),
    ("A skin fold mimics pneumothorax.", "pleural space: pneumothorax -1"),
    ("Nondisplaced fractures may be missed.", "bones: fracture -1"),
    ("No other abnormality besides a small effusion.", "unspecified: abnormality 0; pleural space: effusion 1"),
    ("The lungs are poorly aerated.", "lung volumes: low 1"),
    ("The lungs are poorly expanded.", "lung volumes: low 1"),
    ("Degenerative changes of the end plates of the thoracic spine.", "spine: degenerative 1"),
    ("EKG leads overlie the chest.", "unspecified: monitor lead 1"),
    ("Nonobstructive bowel gas pattern.", ""),
    ("Right greater than left pleural effusions.", "left pleural space: effusion 1; right pleural space: effusion 1"),
    (
        "Small right and moderate left pleural effusions.",
        "left pleural space: effusion 1; right pleural space: effusion 1",
    ),
    (
        "No pneumonia is identified in the left lung, and the right lung shows consolidation.",
        "left lung: pneumonia 0; right lung: consolidation 1",
    ),
    ("Opacity in the left lung and the right lung is clear.", "left lung: opacity 1; right lung: clear 1"),
    (
        "Opacities in the left base and right base are unchanged.",
        "left lung base: opacity 1; right lung base: opacity 1",
    ),
    (
        "The heart is normal in size and the lungs are clear.",
        "heart: cardiomegaly 0; heart: normal 1; left lung: clear 1; right lung: clear 1",
    ),
    ("Consolidation at the base of the right lung.", "right lung base: consolidation 1"),
    ("The bases of the lungs are clear.", "left lung base: clear 1; right lung base: clear 1"),
    (
        "There is opacity in the lower lobe of the right lung and the left lung is clear.",
        "right lower lobe: opacity 1; left lung: clear 1",
    ),
    ("If the patient has pneumonia, follow up is recommended.", ""),
    ("No acute infiltrate, COPD.", "lung: infiltrate 0; unspecified: disease 1"),
    ("No pneumothorax, scarring, or mass.", "pleural space: pneumothorax 0; lung: scar 0; lung: mass 0"),
    ("Negative for infiltrate, positive for effusion.", "lung: infiltrate 0; pleural space: effusion 1"),
    (
        "No pneumothorax following placement of a right chest tube.",
        "pleural space: pneumothorax 0; right pleural space: chest tube 1",
    ),
    ("Pneumonia, resolved.", "lung: pneumonia 0"),
    ("Edema cannot be seen.", "lung: edema 0"),
    ("The reported nodule is not confirmed.", "lung: nodule -1"),
    ("The nodule is not seen on the lateral view.", "lung: nodule -1"),
    ("Density seen on the frontal view, not identified on the lateral view.", "unspecified: density 1"),
    ("The effusion is gone.", "pleural space: effusion 0"),
    (
        "No obvious pneumothorax, cannot exclude tiny effusion.",
        "pleural space: pneumothorax 0; pleural space: effusion -1",
    ),
    ("Borderline cardiomegaly.", "heart: cardiomegaly -1"),
]


@pytest.mark.parametrize(("sentence", "expected"), SENTENCES, ids=[s for s, _ in SENTENCES])
def test_a_sentence_is_read_as_a_reader_would(sentence: str, expected: str) -> None:
    mentions = read_sentence_triplets(normalise(sentence))
    assert "; ".join(f"{m.place}: {m.finding} {int(m.value)}" for m in mentions) == expected
