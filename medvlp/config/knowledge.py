"""Configuration of `medvlp knowledge build`: ontologies and reports -> knowledge bank."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from medvlp.config.base import Config


class GraphEmbeddingConfig(Config):
    """Embeddings of the concept graph. The published setting (ARL) is 1000 epochs; it takes minutes on two cores."""

    method: Literal["transe", "none"] = Field("transe", description="none leaves the embeddings out.")
    dim: int = Field(256, ge=2, le=4096)
    margin: float = Field(5.0, gt=0)
    negatives: int = Field(25, ge=1, description="False triples for each true one.")
    epochs: int = Field(30, ge=1)
    lr: float = Field(0.01, gt=0)
    batch_size: int = Field(1024, ge=1)
    other_relations: bool = Field(True, description="Use part_of and the like too, not only is_a.")
    seed: int = 0


class LinkingConfig(Config):
    """Which names of concepts are looked for in report text."""

    scopes: tuple[Literal["EXACT", "NARROW", "BROAD", "RELATED"], ...] = Field(
        ("EXACT",), description="Synonyms used beside the names."
    )
    exclude: tuple[str, ...] = Field(
        ("cardiopulmonary disease", "degenerative disease", "chronic granulomatous disease", "back"),
        description="Names not looked for, because reports mean something else by them than the ontology.",
    )
    min_characters: int = Field(4, ge=1, description="Shorter names are not looked for: most are abbreviations.")


class KnowledgeConfig(Config):
    """`medvlp knowledge build`: ontologies and reports -> knowledge bank."""

    kind: Literal["knowledge"] = "knowledge"
    ontologies: tuple[Path, ...] = Field(
        min_length=1, description="OBO or OWL files; of one id the first file names it."
    )
    reports: tuple[Path, ...] = Field((), description="Prepared stores whose reports are read.")
    out: Path = Field(description="Folder of the knowledge bank.")
    linking: LinkingConfig = LinkingConfig()
    graph: GraphEmbeddingConfig = GraphEmbeddingConfig()
    shard_reports: int = Field(2000, ge=1, description="Reports per file: the unit of resume.")

    @model_validator(mode="after")
    def _nothing_twice(self) -> KnowledgeConfig:
        for name, paths in (("ontologies", self.ontologies), ("reports", self.reports)):
            if len({str(path) for path in paths}) < len(paths):
                raise ValueError(f"{name} names a path twice")
        return self
