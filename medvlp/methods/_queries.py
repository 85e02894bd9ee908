"""What methods with a query decoder share: books, questions that prompts ask of them, answers and heat maps.

Guarantee: a prompt is read by the reader of reports, so that it asks for what the labels meant; the answer to a prompt
does not depend on the prompts beside it. A prompt that names no finding of the book is decoded as one query more,
behind those of the book, from its own text embedding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import nn

from medvlp.config.methods import MethodConfig
from medvlp.data.demands import Demands
from medvlp.errors import UserError
from medvlp.knowledge.books import anatomy_book, finding_book
from medvlp.knowledge.questions import Question, read_question, sided_places
from medvlp.methods._choices import chosen
from medvlp.methods.base import Encode, Method
from medvlp.methods.context import MethodContext
from medvlp.models.book import Book
from medvlp.models.query_decoder import evidence
from medvlp.models.streams import QueryStream, StreamOutput, start_linear
from medvlp.objectives.zero_shot import by_group
from medvlp.types import Batch, Features

if TYPE_CHECKING:
    from jaxtyping import Float, Int8

IMAGES_AT_ONCE = 64
"""Images decoded together outside training."""


class QueryAnswers:
    """How prompts are answered by a model that decodes queries; it has `query` and `encode_image`."""

    query: nn.Module
    encode_image: Callable[..., Features]
    heat_map_rule: str = "attention"

    @abstractmethod
    def findings(self, image: Features, queries: Float[torch.Tensor, "q d"], attention: bool = False) -> StreamOutput:
        """Return what an image says of each query of the finding stream."""

    @abstractmethod
    def finding_embeddings(self) -> Float[torch.Tensor, "75 e"]:
        """Return the text embedding of each finding, which `query` makes its query."""

    def nearness(self, output: StreamOutput) -> Float[torch.Tensor, "b 75 51"] | None:
        """Return how near each place comes to the most likely sided place of each finding; None: places are unknown."""
        return None

    def zero_shot(
        self,
        image: Features,
        positives: Sequence[Sequence[str]],
        negatives: Sequence[Sequence[str]],
        encode: Encode,
        reduce: Literal["max", "mean"] = "mean",
    ) -> Float[torch.Tensor, "b k"]:
        """Return the probability of each question: the softmax of the two logits of the finding that it asks for.

        Where a prompt names a sided place, the probability is taken times `nearness`. A prompt that denies a finding
        asks for 1 - p. Negative prompts are not needed: every query has a logit for "absent".
        """
        asked = [prompt for prompts in positives for prompt in prompts]
        chances = self._over_images(image, lambda part: self._chances(part, asked, encode))
        return by_group(chances, [len(prompts) for prompts in positives], reduce)

    def _chances(self, image: Features, prompts: Sequence[str], encode: Encode) -> Float[torch.Tensor, "b t"]:
        output = self.findings(image, self.query(self.finding_embeddings()))
        present = output.logits.float().softmax(2)[..., 1]
        nearness = self.nearness(output)

        def chance(question: Question) -> torch.Tensor:
            found = present[:, question.finding]
            if nearness is not None and question.place is not None:
                found = found * nearness[:, question.finding, question.place]
            return 1 - found if question.denied else found

        def answer(prompt: str) -> torch.Tensor:
            questions = read_question(prompt)
            if not questions:
                return self._open(image, prompt, encode).logits[:, -1].float().softmax(1)[:, 1]
            return torch.stack([chance(question) for question in questions]).mean(0)

        return torch.stack([answer(prompt) for prompt in prompts], dim=1)

    def _open(self, image: Features, prompt: str, encode: Encode, attention: bool = False) -> StreamOutput:
        """Decode a prompt as one query more, the last."""
        embeddings = torch.cat([self.finding_embeddings(), encode([prompt]).pooled])
        return self.findings(image, self.query(embeddings), attention)

    def heat_map(
        self, pixels: Float[torch.Tensor, "b c h w"], texts: Sequence[str], encode: Encode
    ) -> Float[torch.Tensor, "b t g w"]:
        """Return where the query of each text's finding looks, by `heat_map_rule`.

        `attention` is the mean over layers and heads, as MedKLIP and MeDSLIP show it; it sums to 1 over the grid.
        `evidence` is how much the attention to each token raises the finding's logit; see `query_decoder.evidence`.
        """
        with torch.inference_mode(False):
            with torch.no_grad():
                image = self.encode_image(pixels)
            return self._over_images(image, lambda part: self._maps(part, texts, encode)).unflatten(2, image.grid)

    def _maps(self, image: Features, texts: Sequence[str], encode: Encode) -> Float[torch.Tensor, "b t p"]:
        weighted = self.heat_map_rule == "evidence"
        with torch.set_grad_enabled(weighted):
            image = replace(image, tokens=image.tokens.detach().requires_grad_(weighted))
            output = self.findings(image, self.query(self.finding_embeddings()), attention=True)

            def map_of(text: str) -> torch.Tensor:
                rows = sorted({question.finding for question in read_question(text)})
                told = output if rows else self._open(image, text, encode, attention=True)
                rows = rows or [-1]
                if weighted:
                    return evidence((told.logits[:, rows, 1] - told.logits[:, rows, 0]).float().sum(), told.heads)
                return told.attention[:, :, rows].float().mean((0, 2))

            return torch.stack([map_of(text) for text in texts], dim=1)

    def _over_images(self, image: Features, compute: Callable[[Features], torch.Tensor]) -> torch.Tensor:
        """Compute a few images at a time, so that memory does not grow with their number."""
        parts = zip(image.tokens.split(IMAGES_AT_ONCE), image.pooled.split(IMAGES_AT_ONCE), strict=True)
        return torch.cat([compute(Features(tokens, pooled, image.grid)) for tokens, pooled in parts])


class PlaceAnswers(QueryAnswers):
    """As `QueryAnswers`, where features of findings are projected to the space of the texts of 51 places."""

    @abstractmethod
    def anatomy_embeddings(self) -> Float[torch.Tensor, "51 e"]:
        """Return the text embedding of each place."""

    def nearness(self, output: StreamOutput) -> Float[torch.Tensor, "b 75 51"]:
        """Return `exp(score - max score of sided places)`, at most 1 for these, of the contrast's logits."""
        scores = output.projected.float() @ self.anatomy_embeddings().float().T
        return (scores - scores[..., list(sided_places())].amax(2, keepdim=True)).exp()


class QueryMethod(QueryAnswers, Method):
    """Base: texts about 75 findings are the queries."""

    shared_space: ClassVar[bool] = False
    heat_map_kind: ClassVar[str | None] = "query attention"

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        assert self.text_encoder is not None
        self.finding_book = self.book_of([text for texts in self.finding_texts() for text in texts])
        self.query = nn.Linear(self.text_encoder.dim, self.config.options["decoder"]["width"])
        self.heat_map_rule = chosen(self.config, "heat_map", ("attention", "evidence"))

    @classmethod
    def finding_texts(cls) -> Sequence[Sequence[str]]:
        """Return the texts about each finding of the book."""
        return [[note.description] for note in finding_book()]

    def book_of(self, texts: Sequence[str]) -> Book:
        """Return a book of texts, embedded by the method's text tower."""
        assert self.text_encoder is not None
        assert self.config.text is not None
        return Book(self.context.tokenise(texts, self.config.text.max_tokens), self.text_encoder)

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        return Demands(triplets=True)

    def finding_embeddings(self) -> Float[torch.Tensor, "75 e"]:
        """Return the text embedding of each finding, which `query` makes its query."""
        assert self.text_encoder is not None
        return self.finding_book(self.text_encoder)

    def matrix_of(self, batch: Batch) -> Int8[torch.Tensor, "b 51 75"]:
        """Return the batch's ternary matrices.

        Raises:
            UserError: There are none.
        """
        if batch.triplets is None:
            raise UserError(
                f"The method '{self.config.name}' needs triplets of places and findings.",
                "data",
                "Use a store with reports.",
            )
        return batch.triplets


class PlaceMethod(PlaceAnswers, QueryMethod):
    """Base of MedKLIP and MeDSLIP: features of findings are projected to the space of the texts of 51 places.

    `trailing`: the text of a place ends in ". " (MeDSLIP) or does not (MedKLIP).
    """

    trailing: ClassVar[bool] = True

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.anatomy_book = self.book_of([note.prompt(self.trailing) for note in anatomy_book()])

    def anatomy_embeddings(self) -> Float[torch.Tensor, "51 e"]:
        """Return the text embedding of each place."""
        assert self.text_encoder is not None
        return self.anatomy_book(self.text_encoder)

    def stream_of(self) -> QueryStream:
        """Return a fresh stream by the configuration."""
        assert self.text_encoder is not None
        options = self.config.options
        stream = QueryStream(
            self.image_encoder.token_dim,
            self.text_encoder.dim,
            options["decoder"],
            options["feature_dropout"],
            norm=options["token_norm"],
            positions=options["token_positions"],
        )
        start_linear(stream, options["linear_deviation"])
        return stream
