"""Split lists of a benchmark (`train.txt`, `val.txt`, `test.txt`, `train_1.txt`, ...), checked and applied to studies.

Guarantee: a list is never taken on trust: repeated names, names in two splits, subsets that are not inside one another,
names that are no image, names that fit several images and patients in two splits are all found and told with numbers.
What is told holds no name of an image, so that it may stand in a store.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from medvlp.errors import UserError
from medvlp.sources._csv import read_text
from medvlp.sources.cards import Card
from medvlp.types import UNKNOWN_PATIENT, ImageRef, Study

SPLITS = ("test", "val", "train")
"""In the order in which they claim an image that is in several of them, so that nothing of test is trained on."""
_SUFFIX = re.compile(r"\.(?:png|jpe?g|dcm|dicom|tiff?|nii|gz|npz|npy|mhd|nrrd|avi|mp4)$", re.IGNORECASE)


@dataclass(frozen=True)
class SplitLists:
    """Names by list, as they stand in the files: `train`, `val`, `test`, and named parts of the training list."""

    folder: Path
    names: Mapping[str, tuple[str, ...]]
    sha256: str

    @property
    def sizes(self) -> dict[str, int]:
        """Lines by list."""
        return {name: len(lines) for name, lines in self.names.items()}


@dataclass
class SplitReport:
    """What was found out about split lists. Faults and overlaps are sentences with numbers, without names of images."""

    sizes: dict[str, int]
    known: str | None = None
    """The edition whose numbers of lines these lists have."""
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    overlaps: list[str] = field(default_factory=list)
    """Images in two splits."""
    images: dict[str, int] = field(default_factory=dict)
    """Images found by list, where a data set is at hand."""
    unlisted: int = 0
    """Images of the data set in no list."""

    @property
    def leaks(self) -> list[str]:
        """What makes results too good: images or patients in two splits."""
        return self.overlaps + [fault for fault in self.faults if "patients are in both" in fault]

    def summary(self, sha256: str) -> dict[str, object]:
        """Return what a store records."""
        return {"sha256": sha256, "edition": self.known, "lines": self.sizes, "images": self.images} | {
            "images in no list": self.unlisted, "notes": self.notes, "faults": self.faults, "overlaps": self.overlaps
        }  # fmt: skip


def read_split_lists(folder: Path) -> SplitLists:
    """Read the lists of a folder: `train.txt`, `test.txt`, perhaps `val.txt`, and `train_<name>.txt`.

    Raises:
        UserError: A list is missing or empty.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    files = {name: path for name, path in files.items() if name in SPLITS or name.startswith("train_")}
    for name in ("train", "test"):
        if name not in files:
            raise UserError(f"There is no {name}.txt.", folder, "Name the folder that holds the lists of one data set.")
    names = {}
    digest = hashlib.sha256()
    for name, path in files.items():
        names[name] = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
        if not names[name]:
            raise UserError(f"The list {path.name} is empty.", path, "Download it again, or remove it.")
        digest.update("\n".join([name, *names[name], ""]).encode())
    return SplitLists(folder, names, digest.hexdigest())


def check_split_lists(lists: SplitLists, cards: Sequence[Card]) -> SplitReport:
    """Return what the lists alone tell.

    Args:
        lists: The lists.
        cards: Data sets that the lists may be of: one where it is known, else all.
    """
    report = SplitReport(lists.sizes)
    keys = {name: [_key(line) for line in lines] for name, lines in lists.names.items()}
    for name, own in keys.items():
        repeated = len(own) - len(set(own))
        if repeated:
            report.faults.append(f"{name}: {repeated:,} of {len(own):,} lines repeat a name")
    for one, other in combinations([name for name in reversed(SPLITS) if name in keys], 2):
        both = set(keys[one]) & set(keys[other])
        if both:
            report.overlaps.append(f"{len(both):,} names are in both {one} and {other}")
    subsets = sorted((name for name in keys if name not in SPLITS), key=lambda name: (len(keys[name]), name))
    for number, name in enumerate(subsets):
        for larger in (*subsets[number + 1 :], "train"):
            outside = len(set(keys[name]) - set(keys[larger]))
            if outside:
                inside = len(set(keys[name])) - outside
                report.faults.append(f"{name}: only {inside:,} of {inside + outside:,} names are in {larger}")
    _compare_with_cards(report, cards)
    return report


def _compare_with_cards(report: SplitReport, cards: Sequence[Card]) -> None:
    """Name the edition whose numbers of lines the lists have, or say how they differ from those of the one card."""
    editions = [(card, name, sizes) for card in cards for name, sizes in card.split_lists.items()]
    for card, name, sizes in editions:
        if report.sizes == sizes:
            report.known = _edition(name, card)
            _compare_with_official(report, card)
            return
    for card, name, sizes in editions if len(cards) == 1 else []:
        wrong = [
            f"{key} has {report.sizes.get(key, 0):,} lines instead of {sizes.get(key, 0):,}"
            for key in sorted({*report.sizes, *sizes})
            if report.sizes.get(key) != sizes.get(key)
        ]
        report.notes.append(f"These are not the {name} lists of {card.name}: {'; '.join(wrong)}")


def _compare_with_official(report: SplitReport, card: Card) -> None:
    """Tell where the lists have other numbers of images than the official splits of the data set."""
    official = {name: size.images for name, size in card.splits.items() if size.images is not None}
    if not official:
        return
    short = {name: images - report.sizes[name] for name, images in official.items() if name in report.sizes}
    if set(short) == {"train", "val", "test"} and set(short.values()) == {1}:
        report.faults.append(
            "every list has one line less than the official split has images: the first line was taken for a header"
        )
    elif set(short) != set(official) or any(short.values()):
        sizes = ", ".join(f"{name} {images:,}" for name, images in official.items())
        report.notes.append(f"This is another split than the official one ({sizes} images)")


def apply_split_lists(
    lists: SplitLists, studies: Sequence[Study], cards: Sequence[Card]
) -> tuple[list[Study], SplitReport]:
    """Return the studies with the splits and subsets of the lists, and what was found out.

    Images in no list are left out. An image in several splits goes to test before val before train; such overlaps stand
    in the report, and it is the caller's to refuse them. The split that a study had before is replaced.

    Raises:
        UserError: No name of the lists is an image of the data set, or the images of one study are in two splits.
    """
    report = check_split_lists(lists, cards)
    images = [image for study in studies for image in study.images]
    cut = any(report.known == _edition(name, card) for card in cards for name in card.cut_split_lists)
    index = _Index(images, lists, cut=cut)
    found = {name: index.find(lines, name, report) for name, lines in lists.names.items()}
    report.images = {name: len(own) for name, own in found.items()}
    if not any(found.values()):
        example = next(iter(lists.names["train"]))
        raise UserError(
            f"No name of the lists is an image of the data set; the first name is {example}.",
            lists.folder,
            "Name the lists of this data set, or the edition that the lists are of with options.edition.",
        )
    for one, other in combinations([name for name in reversed(SPLITS) if name in found], 2):
        both = found[one] & found[other]
        if both:
            report.overlaps.append(f"{len(both):,} images of the data set are in both {one} and {other}")
    split_of = {image_id: split for split in reversed(SPLITS) for image_id in found.get(split, ())}
    subsets = {name: own for name, own in found.items() if name not in SPLITS}
    kept = [moved for study in studies if (moved := _moved(study, split_of, subsets, lists.folder)) is not None]
    report.unlisted = len(images) - sum(len(study.images) for study in kept)
    _compare_studies(report, studies, kept, split_of)
    return kept, report


class _Index:
    """Images by every ending of their paths that has as many parts as the names of the lists.

    Args:
        images: All images of the data set.
        lists: The lists.
        cut: Whether they write file names up to their first dot only.
    """

    def __init__(self, images: Sequence[ImageRef], lists: SplitLists, *, cut: bool) -> None:
        self._train = Counter(map(_key, lists.names["train"]))
        self._places: dict[str, list[ImageRef]] = {}
        self._cut: dict[str, list[ImageRef]] = {}
        lengths = {line.count("/") + 1 for own in lists.names.values() for line in own}
        for image in images:
            parts = image.path.split("/")
            endings = {"/".join(parts[-length:]) for length in lengths if length <= len(parts)}
            keys = {_key(name) for name in (*endings, image.image_id)}
            for key in keys:
                self._places.setdefault(key, []).append(image)
            for key in {_until_dot(key) for key in keys} - keys if cut else ():
                self._cut.setdefault(key, []).append(image)

    def find(self, lines: Sequence[str], name: str, report: SplitReport) -> set[str]:
        """Return the ids of the images that the lines name.

        A name that fits several images (such that differ by suffix alone) means all of them where it stands there as
        often, else the one with its own suffix; failing that, none. A cut name that fits several images means all of
        them where its list must hold them all: a split has it as often, a part of train as often as train.
        """
        times = Counter(map(_key, lines))
        suffixes: dict[str, set[str]] = {}
        for line in lines:
            suffixes.setdefault(_key(line), set()).add(line[len(_key(line)) :].lower())
        found: set[str] = set()
        missing = unclear = cut = 0
        for key, count in times.items():
            fits = self._places.get(key, [])
            if key in self._cut:
                fits = [*fits, *self._cut[key]]
                whole = count if name in SPLITS else self._train[key]
                fits = fits if len(fits) <= whole == count else []
                unclear += not fits
                cut += len(fits)
            elif len(fits) > 1 and count != len(fits):
                fits = [image for image in fits if image.path[len(_key(image.path)) :].lower() in suffixes[key]]
                unclear += len(fits) != 1
                fits = fits if len(fits) == 1 else []
            elif not fits:
                missing += 1
            found.update(image.image_id for image in fits)
        if cut:
            report.notes.append(f"{name}: {cut:,} images are found by names that end at the first dot of the file name")
        if missing:
            report.faults.append(f"{name}: {missing:,} of {len(times):,} names are no image of the data set")
        if unclear:
            report.faults.append(f"{name}: {unclear:,} names fit several images and were not used")
        return found


def _moved(study: Study, split_of: Mapping[str, str], subsets: Mapping[str, set[str]], folder: Path) -> Study | None:
    """Return the study with its listed images alone, in their split; None where none is listed."""
    images = tuple(image for image in study.images if image.image_id in split_of)
    splits = {split_of[image.image_id] for image in images}
    if len(splits) > 1:
        raise UserError(
            f"The images of one study are in {' and '.join(sorted(splits))}: results would be too good.",
            folder,
            "Use lists that keep the images of a study together.",
        )
    if not images:
        return None
    ids = {image.image_id for image in images}
    names = [name for name, own in subsets.items() if ids <= own and splits == {"train"}]
    return dataclasses.replace(
        study,
        images=images,
        boxes=tuple(box for box in study.boxes if box.image_id in ids),
        masks=tuple(mask for mask in study.masks if mask.image_id in ids),
        lesions=tuple(lesion for lesion in study.lesions if lesion.image_id in ids),
        split=splits.pop(),
        subsets=tuple(dict.fromkeys([*study.subsets, *names])),
    )


def _compare_studies(
    report: SplitReport, before: Sequence[Study], after: Sequence[Study], split_of: Mapping[str, str]
) -> None:
    """Tell which official splits lost images, how many images moved, and which splits share patients."""
    unlisted = Counter(
        study.split for study in before for image in study.images if study.split and image.image_id not in split_of
    )
    report.notes += [
        f"{count:,} images of the data set's own {split} are in no list" for split, count in sorted(unlisted.items())
    ]
    official = {image.image_id: study.split for study in before for image in study.images}
    moved = sum(official[image_id] not in (None, split) for image_id, split in split_of.items())
    if moved:
        report.notes.append(f"{moved:,} images are in another split than the data set's own")
    patients: dict[str, set[str]] = {}
    for study in after:
        if study.patient_id != UNKNOWN_PATIENT:
            patients.setdefault(str(study.split), set()).add(study.patient_id)
    unknown = sum(study.patient_id == UNKNOWN_PATIENT for study in after)
    if unknown:
        report.notes.append(
            f"{unknown:,} of {len(after):,} studies are of unknown patients: nobody can tell them apart"
        )
    for one, other in combinations([name for name in reversed(SPLITS) if name in patients], 2):
        both = len(patients[one] & patients[other])
        if both:
            report.faults.append(f"{both:,} patients are in both {one} and {other}")


def _key(name: str) -> str:
    """Return a name without the suffixes of image files; other dots, as in a UID, stay."""
    while stripped := _SUFFIX.search(name):
        name = name[: stripped.start()]
    return name


def _until_dot(key: str) -> str:
    """Return a name up to the first dot of its last part."""
    folder, slash, name = key.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _edition(name: str, card: Card) -> str:
    return f"{name} lists of {card.name}"
