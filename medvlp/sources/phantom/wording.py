"""Sentences of radiology reports, each with the CheXpert names that its words speak of.

Guarantee: an entry is `words | names`; without a bar the names are those of `DEFAULT`. Names follow the words, as a
labeler reads them: "opacity" speaks of Lung Opacity, "pneumonia" of Pneumonia, whatever disease lies behind. In
braces stand the places that `reports` fills: side, Side, lobe, Lobe, degree, Degree, size, rib.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DEFAULT: dict[str, tuple[str, ...]] = {
    "effusion": ("Pleural Effusion",),
    "pneumothorax": ("Pneumothorax",),
    "consolidation": ("Consolidation",),
    "atelectasis": ("Atelectasis",),
    "cardiomegaly": ("Cardiomegaly",),
    "edema": ("Edema",),
    "nodule": ("Lung Lesion",),
    "mass": ("Lung Lesion",),
    "emphysema": (),
    "fibrosis": ("Lung Opacity",),
    "fracture": ("Fracture",),
    "device": ("Support Devices",),
}
"""Names that a sentence on a finding speaks of where the entry does not say."""

DENIED = DEFAULT | {"fibrosis": ()}
"""The same of a sentence that denies: who denies fibrosis does not deny every opacity."""

DEGREES: dict[str, tuple[str, str, str]] = {
    "effusion": ("small", "moderate", "large"),
    "pneumothorax": ("small", "moderate", "large"),
    "consolidation": ("mild", "moderate", "extensive"),
    "atelectasis": ("minimal", "mild", "moderate"),
    "cardiomegaly": ("mild", "moderate", "marked"),
    "edema": ("mild", "moderate", "severe"),
    "emphysema": ("mild", "moderate", "severe"),
    "fibrosis": ("mild", "moderate", "advanced"),
}
"""Words for severity below 0.35, below 0.7 and above."""

PRESENT: dict[str, tuple[str, ...]] = {
    "effusion": (
        "There is a {degree} {side} pleural effusion.",
        "{Degree} {side} pleural effusion.",
        "{Degree} {side}-sided pleural effusion with blunting of the costophrenic angle.",
        "Blunting of the {side} costophrenic angle is consistent with a {degree} effusion.",
        "{Degree} pleural effusion is seen on the {side}.",
        "Layering fluid at the {side} base represents a {degree} pleural effusion.",
        "A {degree} amount of pleural fluid is present on the {side}.",
    ),
    "pneumothorax": (
        "There is a {degree} {side} pneumothorax.",
        "{Degree} {side} pneumothorax.",
        "A visceral pleural line is seen on the {side}, compatible with a {degree} pneumothorax.",
        "{Degree} {side}-sided apicolateral pneumothorax is noted.",
    ),
    "consolidation": (
        "There is {degree} consolidation in the {lobe}.",
        "{Lobe} consolidation.",
        "{Lobe} consolidation, consistent with pneumonia. | Consolidation, Pneumonia",
        "{Degree} airspace opacity in the {lobe} is consistent with pneumonia. | Lung Opacity, Pneumonia",
        "Focal airspace consolidation is seen in the {lobe}, compatible with pneumonia. | Consolidation, Pneumonia",
        "Patchy opacity in the {lobe}. | Lung Opacity",
        "Confluent opacity in the {lobe}, in keeping with consolidation. | Lung Opacity, Consolidation",
        "{Lobe} pneumonia. | Pneumonia",
        "New airspace disease in the {lobe}. | Lung Opacity",
    ),
    "atelectasis plate": (
        "There is {degree} atelectasis in the {lobe}.",
        "{Degree} {lobe} atelectasis.",
        "Linear opacity in the {lobe} is consistent with subsegmental atelectasis. | Lung Opacity, Atelectasis",
        "Bandlike atelectasis in the {lobe}.",
        "Plate-like atelectasis is noted in the {lobe}.",
        "{Side} basilar atelectasis.",
    ),
    "atelectasis lobar": (
        "There is partial collapse of the {lobe}.",
        "{Lobe} collapse with volume loss.",
        "Dense {lobe} opacity with volume loss, consistent with atelectasis. | Lung Opacity, Atelectasis",
        "{Lobe} atelectasis.",
    ),
    "cardiomegaly": (
        "There is {degree} cardiomegaly.",
        "{Degree} cardiomegaly.",
        "The heart is {degree}ly enlarged.",
        "The cardiac silhouette is {degree}ly enlarged.",
        "{Degree} enlargement of the cardiac silhouette.",
        "Heart size is {degree}ly enlarged.",
    ),
    "edema": (
        "There is {degree} pulmonary edema.",
        "{Degree} interstitial pulmonary edema.",
        "Findings are consistent with {degree} pulmonary edema.",
        "Indistinct perihilar vessels and septal lines, consistent with {degree} edema.",
        "Bilateral perihilar opacities are compatible with {degree} pulmonary edema. | Lung Opacity, Edema",
        "Pulmonary vascular congestion with {degree} edema.",
    ),
    "nodule": (
        "There is a {size} nodule in the {lobe}.",
        "{size} nodule in the {lobe}.",
        "A {size} rounded nodule projects over the {lobe}.",
        "{Lobe} pulmonary nodule measuring {size}.",
        "A {size} nodular opacity is seen in the {lobe}. | Lung Lesion, Lung Opacity",
    ),
    "nodule calcified": (
        "There is a {size} calcified nodule in the {lobe}.",
        "{size} calcified nodule in the {lobe}.",
    ),
    "mass": (
        "There is a {size} mass in the {lobe}.",
        "{Lobe} mass measuring {size}.",
        "A spiculated {size} mass is seen in the {lobe}.",
        "Large mass in the {lobe}, measuring approximately {size}.",
        "A {size} mass projects over the {lobe}, suspicious for malignancy.",
    ),
    "emphysema": (
        "The lungs are hyperinflated with flattened diaphragms, consistent with {degree} emphysema.",
        "{Degree} emphysema.",
        "There are {degree} emphysematous changes, most pronounced in the upper lobes.",
        "Hyperinflation and upper lobe lucency are consistent with emphysema.",
        "Hyperexpanded lungs with {degree} bullous change.",
    ),
    "fibrosis": (
        "Bibasilar reticular opacities are consistent with {degree} interstitial fibrosis.",
        "Peripheral and basilar reticular opacities, in keeping with {degree} fibrotic lung disease.",
        "There are {degree} reticular interstitial opacities at both bases.",
        "{Degree} chronic interstitial lung disease with basilar predominant reticulation.",
        "Coarse interstitial markings at the bases reflect {degree} interstitial lung disease.",
    ),
    "fracture acute": (
        "There is a displaced fracture of the {side} {rib} rib.",
        "Acute {side} {rib} rib fracture.",
        "Displaced {side} {rib} rib fracture.",
        "A fracture of the {side} {rib} rib is noted.",
    ),
    "fracture healed": (
        "Old healed fracture of the {side} {rib} rib.",
        "There is a healed {side} {rib} rib fracture.",
        "Chronic {side} {rib} rib fracture with callus formation.",
    ),
    "device pacemaker": (
        "A {side}-sided pacemaker is in place with leads projecting over the right heart.",
        "{Side} chest wall pacemaker with intact leads.",
        "Cardiac pacemaker overlies the {side} chest.",
    ),
    "device central line": (
        "A {side} internal jugular central venous catheter terminates in the superior vena cava.",
        "{Side} IJ central line with tip in the SVC.",
        "{Side} internal jugular catheter tip projects over the SVC.",
    ),
    "device picc": (
        "A {side} PICC terminates in the superior vena cava.",
        "{Side} PICC line with tip in the mid SVC.",
        "{Side} upper extremity PICC tip projects over the SVC.",
    ),
    "device port": (
        "A {side} chest wall port catheter terminates in the SVC.",
        "{Side}-sided Port-A-Cath with catheter tip in the superior vena cava.",
    ),
    "device endotracheal tube": (
        "The endotracheal tube tip is above the carina.",
        "Endotracheal tube terminates several centimeters above the carina.",
        "ET tube in standard position.",
    ),
    "device enteric tube": (
        "An enteric tube courses below the diaphragm.",
        "Nasogastric tube tip is in the stomach.",
        "NG tube extends into the stomach.",
    ),
    "device chest tube": (
        "A {side} chest tube is in place.",
        "{Side}-sided chest tube with tip at the apex.",
        "{Side} apical chest tube is noted.",
    ),
}

UNCERTAIN: dict[str, tuple[str, ...]] = {
    "effusion": (
        "Possible {degree} {side} pleural effusion.",
        "A {degree} {side} pleural effusion cannot be excluded.",
        "Blunting of the {side} costophrenic angle may represent a {degree} effusion.",
        "Questionable {degree} {side} effusion.",
    ),
    "pneumothorax": (
        "Possible {degree} {side} pneumothorax.",
        "A {degree} {side} pneumothorax cannot be excluded.",
        "Questionable {degree} {side} apical pneumothorax.",
    ),
    "consolidation": (
        "Possible {lobe} pneumonia. | Pneumonia",
        "{Lobe} pneumonia cannot be excluded. | Pneumonia",
        "Possible early consolidation in the {lobe}.",
        "Findings may represent pneumonia in the {lobe} in the appropriate clinical setting. | Pneumonia",
    ),
    "atelectasis plate": ("Possible {lobe} atelectasis.", "Findings in the {lobe} may represent atelectasis."),
    "atelectasis lobar": ("Possible partial collapse of the {lobe}.", "Probable {lobe} atelectasis."),
    "cardiomegaly": ("Possible {degree} cardiomegaly.", "The heart is possibly enlarged."),
    "edema": (
        "Possible {degree} pulmonary edema.",
        "{Degree} pulmonary edema cannot be excluded.",
        "Findings may represent {degree} edema.",
        "Suspected {degree} interstitial edema.",
    ),
    "nodule": ("Possible {size} nodule in the {lobe}.", "Questionable {size} nodule projecting over the {lobe}."),
    "mass": ("Possible {size} mass in the {lobe}.", "Findings are suspicious for a {size} mass in the {lobe}."),
    "fracture acute": (
        "Possible {side} {rib} rib fracture.",
        "Questionable nondisplaced fracture of the {side} {rib} rib.",
    ),
    "emphysema": ("Possible {degree} emphysema.",),
    "fibrosis": ("Possible {degree} reticular opacities at the bases.",),
}

ABSENT: dict[str, tuple[str, ...]] = {
    "effusion": (
        "No pleural effusion.",
        "There is no pleural effusion.",
        "No effusion.",
        "No evidence of pleural effusion.",
        "The costophrenic angles are sharp without effusion.",
    ),
    "pneumothorax": (
        "No pneumothorax.",
        "There is no pneumothorax.",
        "No evidence of pneumothorax.",
        "No pneumothorax is seen.",
    ),
    "effusion and pneumothorax": (
        "No pleural effusion or pneumothorax.",
        "There is no pleural effusion or pneumothorax.",
        "No effusion or pneumothorax is identified.",
        "Negative for pneumothorax or pleural effusion.",
    ),
    "consolidation": (
        "No focal consolidation.",
        "There is no focal airspace consolidation.",
        "The lungs are clear without consolidation.",
        "No evidence of pneumonia. | Pneumonia",
        "No focal consolidation to suggest pneumonia. | Consolidation, Pneumonia",
    ),
    "atelectasis": ("No atelectasis.",),
    "cardiomegaly": (
        "Heart size is normal.",
        "The heart is normal in size.",
        "The heart size is within normal limits.",
        "No cardiomegaly.",
        "The cardiac silhouette is normal in size.",
        "The cardiac silhouette is not enlarged.",
    ),
    "edema": (
        "No pulmonary edema.",
        "There is no pulmonary edema.",
        "No evidence of edema.",
        "No overt pulmonary edema.",
    ),
    "nodule": ("No pulmonary nodule.", "No suspicious pulmonary nodules are identified."),
    "mass": ("No pulmonary mass.",),
    "fracture": ("No acute fracture.", "No displaced rib fracture.", "No fracture is identified."),
}

DENY = {
    "effusion": 0.85,
    "pneumothorax": 0.85,
    "consolidation": 0.6,
    "atelectasis": 0.05,
    "cardiomegaly": 0.75,
    "edema": 0.35,
    "nodule": 0.08,
    "mass": 0.05,
    "fracture": 0.2,
}
"""Chance that a report denies a finding that is not there."""

CHANGE: dict[str, tuple[str, ...]] = {
    "unchanged": ("unchanged", "stable", "similar to the prior study", "not significantly changed"),
    "worse": ("increased", "larger than on the prior study", "worsened since the prior examination"),
    "improved": ("decreased", "smaller than on the prior study", "improved since the prior examination"),
    "new": ("new since the prior study", "new from prior"),
}
"""How a finding stands against the study before."""

RESOLVED: dict[str, tuple[str, ...]] = {
    "effusion": ("The previously seen {side} pleural effusion has resolved.",),
    "pneumothorax": ("The previously seen {side} pneumothorax has resolved.",),
    "consolidation": ("The previously seen {lobe} consolidation has resolved.",),
    "atelectasis": ("The previously seen {lobe} atelectasis has resolved.",),
    "edema": ("The previously seen pulmonary edema has resolved.",),
}

NORMAL = (
    "No acute cardiopulmonary abnormality.",
    "No acute cardiopulmonary process.",
    "No acute cardiopulmonary disease.",
    "Normal chest radiograph.",
    "Normal chest.",
)
MEDIASTINUM = ("The mediastinal contours are normal.", "The mediastinal contours are unremarkable.")
LUNGS_CLEAR = ("The lungs are clear.", "Lungs are clear bilaterally.", "The lungs are well expanded and clear.")
BONES = ("The osseous structures are unremarkable.", "No acute osseous abnormality.", "Bony structures are intact.")
INDICATION = {
    "effusion": ("Dyspnea.", "Shortness of breath.", "Dullness to percussion."),
    "pneumothorax": ("Sudden chest pain.", "Acute dyspnea and pleuritic pain.", "Chest pain."),
    "consolidation": ("Cough and fever.", "Fever and productive cough.", "Fever, leukocytosis."),
    "atelectasis": ("Postoperative day two, hypoxia.", "Hypoxia."),
    "cardiomegaly": ("Orthopnea and leg swelling.", "Shortness of breath.", "Hypertension."),
    "edema": ("Acute shortness of breath.", "Orthopnea.", "Dyspnea on exertion."),
    "nodule": ("Weight loss.", "Follow-up examination.", "Smoker, chronic cough."),
    "mass": ("Hemoptysis.", "Weight loss and cough.", "Chronic smoker with hemoptysis."),
    "emphysema": ("Chronic smoker, dyspnea.", "Long smoking history."),
    "fibrosis": ("Progressive dyspnea and dry cough.", "Crackles on auscultation."),
    "fracture": ("Fall from standing.", "Motor vehicle collision.", "Chest wall pain after a fall."),
    "device": ("Intubated patient.", "Status post procedure.", "Critically ill patient."),
    "": ("Chest pain.", "Preoperative evaluation.", "Routine examination.", "Cough.", "Positive tuberculin test."),
}
TECHNIQUE = {
    "PA": ("PA view of the chest.", "Single frontal view of the chest."),
    "PA LATERAL": ("PA and lateral views of the chest.", "Frontal and lateral radiographs of the chest."),
    "AP": ("Portable AP view of the chest.", "Single AP portable radiograph."),
    "AP LATERAL": ("AP and lateral views of the chest.",),
}

PRIOR = "Prior chest radiograph."


@dataclass(frozen=True)
class Wording:
    """The sentences of one modality; tables of findings as above, `technique` by view, `prior` of a follow-up.

    `deny` is the chance that a report denies a finding that is not there, 0 where there is none.
    """

    present: Mapping[str, tuple[str, ...]]
    uncertain: Mapping[str, tuple[str, ...]]
    absent: Mapping[str, tuple[str, ...]]
    normal: tuple[str, ...]
    technique: Mapping[str, tuple[str, ...]]
    prior: str
    deny: Mapping[str, float]


RADIOGRAPH = Wording(PRESENT, UNCERTAIN, ABSENT, NORMAL, TECHNIQUE, PRIOR, DENY)
