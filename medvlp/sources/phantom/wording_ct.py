"""Sentences of CT reports of the phantom, in the form of `wording`.

Guarantee: nothing speaks of projections, silhouettes, angles or views, which a radiograph has and a CT has not.
"""

from __future__ import annotations

from medvlp.sources.phantom.wording import ABSENT, DENY, PRESENT, TECHNIQUE, UNCERTAIN, Wording

_PRESENT: dict[str, tuple[str, ...]] = {
    "effusion": (
        "There is a {degree} {side} pleural effusion.",
        "{Degree} {side} pleural effusion.",
        "{Degree} pleural effusion is seen on the {side}.",
        "A {degree} amount of pleural fluid is present on the {side}.",
        "Fluid attenuation in the {side} pleural space represents a {degree} pleural effusion.",
    ),
    "pneumothorax": (
        "There is a {degree} {side} pneumothorax.",
        "{Degree} {side} pneumothorax.",
        "Air is seen in the {side} pleural space, compatible with a {degree} pneumothorax.",
    ),
    "consolidation": (
        "There is {degree} consolidation in the {lobe}.",
        "{Lobe} consolidation.",
        "{Lobe} consolidation, consistent with pneumonia. | Consolidation, Pneumonia",
        "{Degree} airspace opacity in the {lobe} is consistent with pneumonia. | Lung Opacity, Pneumonia",
        "Focal airspace consolidation is seen in the {lobe}, compatible with pneumonia. | Consolidation, Pneumonia",
        "Confluent opacity in the {lobe}, in keeping with consolidation. | Lung Opacity, Consolidation",
        "{Lobe} pneumonia. | Pneumonia",
    ),
    "cardiomegaly": (
        "There is {degree} cardiomegaly.",
        "{Degree} cardiomegaly.",
        "The heart is {degree}ly enlarged.",
        "Heart size is {degree}ly enlarged.",
    ),
    "edema": (
        "There is {degree} pulmonary edema.",
        "{Degree} interstitial pulmonary edema.",
        "Findings are consistent with {degree} pulmonary edema.",
        "Perihilar increase in attenuation of both lungs, consistent with {degree} edema.",
        "Bilateral perihilar opacities are compatible with {degree} pulmonary edema. | Lung Opacity, Edema",
    ),
    "nodule": (
        "There is a {size} nodule in the {lobe}.",
        "{size} nodule in the {lobe}.",
        "A {size} solid nodule is seen in the {lobe}.",
        "{Lobe} pulmonary nodule measuring {size}.",
    ),
    "mass": (
        "There is a {size} mass in the {lobe}.",
        "{Lobe} mass measuring {size}.",
        "Large mass in the {lobe}, measuring approximately {size}.",
        "A {size} mass in the {lobe} is suspicious for malignancy.",
    ),
    "emphysema": (
        "{Degree} emphysema.",
        "There are {degree} emphysematous changes, most pronounced in the upper lobes.",
        "Low attenuation of the upper lobes is consistent with {degree} emphysema.",
        "{Degree} emphysema with flattened diaphragms.",
    ),
    "fibrosis": (
        "Peripheral and basilar reticulation is consistent with {degree} interstitial fibrosis.",
        "Basilar reticular opacities, in keeping with {degree} fibrotic lung disease.",
        "{Degree} chronic interstitial lung disease with basilar predominant reticulation.",
        "{Degree} pulmonary fibrosis with basilar predominance.",
    ),
    "device pacemaker": (
        "A {side}-sided pacemaker is in place with leads in the right heart.",
        "{Side} chest wall pacemaker with leads in the right heart.",
    ),
    "device central line": (
        "A {side} internal jugular central venous catheter terminates in the superior vena cava.",
        "{Side} IJ central line with tip in the SVC.",
    ),
    "device picc": (
        "A {side} PICC terminates in the superior vena cava.",
        "{Side} PICC line with tip in the mid SVC.",
    ),
}
_UNCERTAIN: dict[str, tuple[str, ...]] = {
    "effusion": (
        "Possible {degree} {side} pleural effusion.",
        "A {degree} {side} pleural effusion cannot be excluded.",
        "Questionable {degree} {side} effusion.",
    ),
    "pneumothorax": (
        "Possible {degree} {side} pneumothorax.",
        "A {degree} {side} pneumothorax cannot be excluded.",
    ),
    "nodule": ("Possible {size} nodule in the {lobe}.", "Questionable {size} nodule in the {lobe}."),
}
_ABSENT: dict[str, tuple[str, ...]] = {
    "effusion": (
        "No pleural effusion.",
        "There is no pleural effusion.",
        "No evidence of pleural effusion.",
        "The pleural spaces are free of fluid without effusion.",
    ),
    "cardiomegaly": (
        "Heart size is normal.",
        "The heart is normal in size.",
        "The heart size is within normal limits.",
        "No cardiomegaly.",
    ),
    "nodule": ("No pulmonary nodule.", "No suspicious pulmonary nodules are identified.", "No lung nodules are seen."),
    "mass": ("No pulmonary mass.", "No mass is detected in the lungs.", "No lung mass."),
    "emphysema": ("No emphysema.", "No emphysematous changes.", "There is no evidence of emphysema."),
    "fibrosis": (
        "No evidence of interstitial lung disease.",
        "No pulmonary fibrosis.",
        "There are no fibrotic changes.",
    ),
}
_DENY = {"nodule": 0.35, "mass": 0.4, "emphysema": 0.35, "fibrosis": 0.3, "atelectasis": 0.15}
"""A CT shows what a radiograph does not, and its report says so."""
_TECHNIQUE = ("CT of the chest without contrast.", "Unenhanced CT of the chest.", "Axial CT of the thorax.")

CT = Wording(
    present=PRESENT | _PRESENT,
    uncertain=UNCERTAIN | _UNCERTAIN,
    absent=ABSENT | _ABSENT,
    normal=(
        "No acute cardiopulmonary abnormality.",
        "No acute cardiopulmonary process.",
        "No acute cardiopulmonary disease.",
        "Normal CT of the chest.",
        "Normal chest CT.",
    ),
    technique=dict.fromkeys(TECHNIQUE, _TECHNIQUE),
    prior="Prior chest CT.",
    deny=DENY | _DENY,
)
"""Sentences of a CT of the chest."""
