"""MedKLIP's and MeDSLIP's released models: query decoders over the tokens of a ResNet that ends behind layer3.

Guarantee: with the official books the queries, answers and attention are the official ones. The files hold no text
tower: books and prompts are read by a local copy of the frozen one that both were trained with (Bio_ClinicalBERT).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from medvlp.config.towers import TextTowerConfig
from medvlp.errors import UserError
from medvlp.knowledge.books import anatomy_book, finding_book
from medvlp.methods._queries import PlaceAnswers, QueryMethod
from medvlp.models.book import Book
from medvlp.models.streams import QueryStream, StreamGate, StreamOutput
from medvlp.models.text import TextTower
from medvlp.text.tokenizer import Tokenizer
from medvlp.types import Features, TextBatch
from medvlp.zoo.release import Release
from medvlp.zoo.released import ReleasedModel

if TYPE_CHECKING:
    from jaxtyping import Float

FINDING, ANATOMY = "finding", "anatomy"


class QueryModel(PlaceAnswers, ReleasedModel):
    """One stream of findings, or two behind a gate.

    Options of the format: `streams`, `book_width`, `decoder` (see `QueryDecoder`), `trailing` (whether the text of a
    place ends in ". ").

    Attributes:
        query: From embeddings of either book to queries.
        streams: `finding` and perhaps `anatomy`.
        gate: Splits the tokens between two streams; None with one.
    """

    finding_book: Book
    anatomy_book: Book

    def __init__(self, release: Release) -> None:
        super().__init__(release)
        options, width = release.options, self.image.dim
        self.query = nn.Linear(options["book_width"], options["decoder"]["width"])
        self.gate = StreamGate(width) if ANATOMY in options["streams"] else None
        self.streams = nn.ModuleDict(
            {name: QueryStream(width, options["book_width"], options["decoder"]) for name in options["streams"]}
        )

    def findings(self, image: Features, queries: Float[torch.Tensor, "q d"], attention: bool = False) -> StreamOutput:
        """Return what the stream of findings says of each query."""
        return self.streams[FINDING](self._stream_tokens(image)[FINDING], queries, attention)

    def decode(
        self, image: Features, books: Mapping[str, Float[torch.Tensor, "q e"]], attention: bool = False
    ) -> dict[str, StreamOutput]:
        """Return what each stream says of the entries of its book.

        Args:
            image: Encoded images.
            books: Embeddings of the entries, by stream.
            attention: Return what each query attends to.
        """
        tokens = self._stream_tokens(image)
        return {
            name: self.streams[name](tokens[name], self.query(embeddings), attention)
            for name, embeddings in books.items()
        }

    def _stream_tokens(self, image: Features) -> dict[str, Float[torch.Tensor, "b p d"]]:
        if self.gate is None:
            return {FINDING: image.tokens}
        finding, anatomy = self.gate(image.tokens)
        return {FINDING: finding, ANATOMY: anatomy}

    @property
    def shared_space(self) -> bool:
        """There is none: a text is answered by its query."""
        return False

    @property
    def scores_text(self) -> bool:
        """Whether a text tower has read the books."""
        return self.text is not None

    @property
    def heat_map_kind(self) -> str | None:
        """How `heat_map` finds evidence; None before a text tower has read the books."""
        return None if self.text is None else QueryMethod.heat_map_kind

    def finding_embeddings(self) -> Float[torch.Tensor, "75 e"]:
        """Return the text embedding of each finding."""
        return self.finding_book(self._need(self.text, "text tower"))

    def anatomy_embeddings(self) -> Float[torch.Tensor, "51 e"]:
        """Return the text embedding of each place."""
        return self.anatomy_book(self._need(self.text, "text tower"))

    def read_books(self, folder: Path, descriptions: Path | None = None) -> Tokenizer:
        """Read both books with a text tower, which then also reads prompts.

        Args:
            folder: Local Hugging Face folder of the text model and its tokenizer.
            descriptions: The authors' JSON file `{finding: description}` with the 75 findings in their order; None
                takes medvlp's own descriptions, with which answers are near the official ones but not equal.

        Returns:
            The tokenizer of the tower.

        Raises:
            UserError: The folder is no text model of the right width, or the file no book of 75 findings.
        """
        tokenizer = Tokenizer.from_folder(folder)
        options = self.release.options
        config = TextTowerConfig(folder=folder, max_tokens=options["max_tokens"], pool="cls", freeze=True)
        tower = TextTower(config, tokenizer.vocab_size, tokenizer.pad_id).eval()
        if tower.dim != options["book_width"]:
            raise UserError(
                f"The text tower has width {tower.dim}, the checkpoint takes {options['book_width']}.",
                folder,
                "Give the folder of Bio_ClinicalBERT.",
            )
        findings = [note.description for note in finding_book()] if descriptions is None else read_book(descriptions)
        places = [note.prompt(options["trailing"]) for note in anatomy_book()]
        self.text = cast(Any, tower)
        self.finding_book, self.anatomy_book = (
            Book(_tokens(tokenizer, texts, options["max_tokens"]), tower) for texts in (findings, places)
        )
        return tokenizer


def read_book(file: Path) -> list[str]:
    """Return the descriptions of a JSON file `{finding: description}`, in the order of the file.

    Raises:
        UserError: It is no such file, or has another number of findings than the finding book.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"The book cannot be read: {error}", file, "Give the authors' JSON file.") from error
    number = len(finding_book())
    if not isinstance(entries, dict) or len(entries) != number or not all(isinstance(v, str) for v in entries.values()):
        raise UserError(
            f"The file is no mapping of {number} findings to descriptions.",
            file,
            "Give the authors' file (observation explanation.json), entries in their order.",
        )
    return list(entries.values())


def _tokens(tokenizer: Tokenizer, texts: list[str], max_tokens: int) -> TextBatch:
    ids, mask, _ = tokenizer.encode(texts, max_tokens)
    return TextBatch(torch.from_numpy(ids), torch.from_numpy(mask))
