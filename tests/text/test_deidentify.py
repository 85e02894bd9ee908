"""De-identification of free text: what must go, what must stay, and what dates become."""

from __future__ import annotations

import pytest

from medvlp.errors import UserError
from medvlp.text.deidentify import deidentify, presidio
from medvlp.text.known_names import without_known

GONE = [
    ("Read by Grace Hopper, M.D.", "Hopper"),
    ("Electronically signed by: Ada Lovelace MD", "Lovelace"),
    ("ELECTRONICALLY SIGNED BY DR. ALAN TURING", "TURING"),
    ("Dictated by van der Berg, Jan at noon", "Berg"),
    ("Discussed with Dr. O'Neill at 10:30.", "Neill"),
    ("Mrs. Smith-Jones was positioned upright.", "Smith"),
    ("Patient name: DOE, JANE", "JANE"),
    ("Referring physician: Gregory House", "House"),
    ("Attending: J. Watson", "Watson"),
    ("MRN: 00482911", "00482911"),
    ("Accession number A1234567", "A1234567"),
    ("medical record # 55-1234", "55-1234"),
    ("Patient ID 778812", "778812"),
    ("Call 555-123-4567 now", "555-123"),
    ("Called to 555-0142 at noon", "555-0142"),
    ("Tel: +49 30 1234567", "1234567"),
    ("write to jane.doe@clinic.org", "jane"),
    ("see https://pacs.local/1", "pacs"),
    ("SSN 123-45-6789", "6789"),
    ("lives at 12 Baker Street, London", "Baker"),
    ("Transferred from St. Mary's General Hospital", "Mary"),
    ("Images from University of Springfield", "Springfield"),
    ("UID 1.2.840.113619.2.55.3.12345.", "113619"),
    ("Compared with 03/12/2014.", "2014"),
    ("Compared with 3-12-14.", "3-12-14"),
    ("Compared with March 2014.", "March 2014"),
    ("Seen 20140312 on film", "20140312"),
    ("number 12345678 on film", "12345678"),
    ("A 93-year-old woman", "93"),
    ("Seen by Ibáñez today", "Ibáñez"),
    ("Mrs.\nÖzdemir has edema.", "Özdemir"),
    ("Herr Weißenborn klagt über Husten.", "Weißenborn"),
    ("Zuweiser: Prof. Dr. med. Krautheimer", "Krautheimer"),
    ("Patientin Anna-Lena Schulz, geb. 3.2.1950", "Schulz"),
    ("Pat.-Nr. 47110", "47110"),
    ("Fallnummer: A-2231", "2231"),
    ("mit freundlichen Grüßen\nKonrad Lorenz", "Lorenz"),
    ("Wohnt Arnold-Heller-Straße 3, 24105 Kiel.", "24105"),
    ("Aus dem Klinikum rechts der Isar verlegt.", "Isar"),
    ("Voraufnahme vom 3. März 2019.", "2019"),
    ("Paciente: María José Álvarez. Tos.", "Álvarez"),
    ("La Sra. Ibáñez refiere tos.", "Ibáñez"),
    ("NHC 44871, tos.", "44871"),
    ("Informado por Lucía Gómez", "Gómez"),
    ("Vive en calle de la Luna 12.", "Luna"),
    ("Control del 12 de marzo de 2019.", "marzo"),
]


@pytest.mark.parametrize(("text", "secret"), GONE)
def test_what_identifies_is_gone(text: str, secret: str) -> None:
    assert secret in text
    assert secret not in deidentify(text)


KEPT = [
    "A 3.2 x 4.5 cm mass in the right upper lobe, 12 mm from the pleura.",
    "T12/L1 disc space narrowing; ribs 5/6 fractured; L4-5 normal.",
    "Heart size is normal. Cardiothoracic ratio 0.55. HU 30 to 40. 120/80 mmHg.",
    "No change since the prior study 3 weeks ago. Read with caution. Discussed with the team.",
    "A nodule in segment 5 may represent a granuloma.",
    "Called within 10 minutes. 500-1000 mL of fluid were drained.",
    "100 mL of contrast, 300 mg/mL, 2.5 mm slices, kV 120, 1024 x 1024 pixels.",
    "The patient was rotated. Patient motion limits the study. May represent pneumonia.",
    "An 83-year-old man with a PICC line ending in the SVC; sputum in hospital.",
    "Findings were communicated by telephone at 10:30 PM.",
    "Discussed with Dr.\nFINDINGS: clear. 14 Fr Foley, 8 Fr pigtail.",
    "Der Patient hat Husten. Kein Erguss, kein Pneumothorax. Lunge beidseits frei belüftet, Herz grenzwertig groß.",
    "Beurteilung: Zustand nach Operation am 3. Tag; Verlaufskontrolle in 6 Monaten. Klinik: Dyspnoe.",
    "Paciente con tos. Sin derrame pleural. Hospital de día. Aumento de 12 mm en 3 meses.",
    "Senos costofrénicos libres. Mediastino normal. Informado como urgente.",
]


@pytest.mark.parametrize("text", KEPT)
def test_medical_text_stays_to_the_letter(text: str) -> None:
    assert deidentify(text, study_date="20150321") == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Prior of 2015-03-20.", "Prior of [1 day before]."),
        ("Prior of 12 March 2015.", "Prior of [9 days before]."),
        ("Prior of March 5th, 2015.", "Prior of [16 days before]."),
        ("Follow-up on 2015/04/20.", "Follow-up on [30 days after]."),
        ("Today, 20150321, no change.", "Today, [same day], no change."),
        ("Prior of 03/12/2015.", "Prior of [DATE]."),
        ("Prior of 2015-13-45.", "Prior of [DATE]."),
    ],
)
def test_dates_become_distances_where_they_are_beyond_doubt(text: str, expected: str) -> None:
    assert deidentify(text, study_date="20150321") == expected


def test_named_identifiers_go_wherever_they_stand() -> None:
    known = ["DOE^JANE MARY", "X-77/b", "Ng"]
    text = "jane doe (X-77/B) was seen; Doe, Jane. DOE_JANE. Mary. The doer of Jane's film. Angle."
    assert deidentify(text, known=known) == (
        "[REMOVED] ([REMOVED]) was seen; [REMOVED]. [REMOVED]. [REMOVED]. The doer of [REMOVED]'s film. Angle."
    )


@pytest.mark.parametrize(
    ("known", "text"),
    [
        ("Müller^Hans-Peter", "mueller MULLER Müller Hans Peter, H.-P. Müller; hans-peter"),
        ("Mueller^Anna", "Anna Müller"),
        ("Mu\u0308ller^Anna", "Müller, Mu\u0308ller"),
        ("García López^José María", "jose maria garcia lopez; LÓPEZ"),
        ("Groß^Éva", "GROSS eva; Gross"),
        ("O'Brien^Siobhán", "OBrien, O\u2019Brien, siobhan"),
        ("Łukasz^Żaneta", "Lukasz Zaneta"),
        ("Ng^Li", "Li Ng; Ng, Li; NG LI"),
        ("Hans\nMüller", "hans\n  müller"),
        ("0007310037", "7310037; 007310037; 731 0037"),
    ],
)
def test_every_spelling_of_a_known_name_goes(known: str, text: str) -> None:
    assert set(without_known(text, [known]).replace("[REMOVED]", "")) <= set(" ,;")


def test_particles_short_parts_and_longer_words_stay() -> None:
    known = ["van der Berg^Li", "NG^LI", "0042", "Hanne Mai"]
    text = "Der Patient und Dr. med. Berger, an NG tube in the Bergland; 42 mm, 0.42, in May."
    assert without_known(text, known) == text
    assert without_known("Frau van der Berg", known) == "Frau [REMOVED]"
    assert without_known("text", []) == "text"


def test_it_is_done_when_it_is_done() -> None:
    for text, _ in GONE:
        once = deidentify(text)
        assert deidentify(once) == once


def test_presidio_needs_a_model_of_the_user(tmp_path) -> None:
    spacy = pytest.importorskip("spacy")
    with pytest.raises(UserError, match="no spaCy model"):
        presidio(str(tmp_path / "none"))
    blank = spacy.blank("en")
    ruler = blank.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "PERSON", "pattern": "Wintermute"}])
    blank.to_disk(tmp_path / "model")
    clean = presidio(str(tmp_path / "model"))
    assert clean("Film of Wintermute, mail w@x.org.") == "Film of [PERSON], mail [EMAIL_ADDRESS]."
