"""Configuration of `medvlp data prepare`: raw data set -> prepared store, and several of them at once.

Guarantee: a setting that does not fit the others, or has no effect beside them, is a mistake.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from medvlp.config.base import Config
from medvlp.config.cluster import ClusterConfig
from medvlp.config.identifiers import IdentifierConfig
from medvlp.config.preprocessing import StoredImageConfig, StoredVideoConfig, StoredVolumeConfig


class PrepareConfig(Config):
    """`medvlp data prepare`: raw data set -> prepared store."""

    kind: Literal["prepare"] = "prepare"
    source: str = Field(description="Name of the data set: the file name of its card in data_cards.")
    root: Path = Field(description="Folder or archive of the raw data set.")
    out: Path = Field(description="Folder of the prepared store.")
    options: dict[str, Any] = Field(default_factory=dict, description="What the data set's card declares as options.")
    image: StoredImageConfig = StoredImageConfig()
    volume: StoredVolumeConfig = StoredVolumeConfig()
    video: StoredVideoConfig = StoredVideoConfig()
    identifiers: IdentifierConfig = IdentifierConfig()
    masks: bool = Field(True, description="Store the masks of the data set on the grid of its images.")
    shard_images: int = Field(512, ge=1, le=65536, description="Images per shard: the unit of work and of resume.")
    num_workers: int = Field(0, ge=0, description="Processes; 0 takes one per core.")
    max_quarantine_share: float = Field(
        0.01, ge=0, le=1, description="Larger shares of bad studies fail the stage at its end."
    )
    val_fraction: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of training patients set aside where no val split exists; null takes 0.1, or 0 where the "
        "data set does not say whose its training images are.",
    )
    test_fraction: float = Field(
        0.0, ge=0, lt=1, description="Share of the patients set aside for test, of a data set that has no split at all."
    )
    split_seed: int = 0
    split_lists: Path | None = Field(
        None,
        description="Folder with a benchmark's train.txt, test.txt, perhaps val.txt and train_1.txt ..., in place of "
        "the data set's own splits; images in no list are left out.",
    )
    accept_split_overlap: bool = Field(
        False, description="Use split lists that share images: these go to test before val before train."
    )
    limit: int | None = Field(None, ge=1, description="Only the first studies, for a trial.")
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _workers_of_one_kind(self) -> PrepareConfig:
        if self.num_workers and self.cluster.kind != "none":
            raise ValueError(
                f"num_workers has no effect with cluster={self.cluster.kind}: set cluster.cpus_per_task and "
                "cluster.max_jobs"
            )
        return self

    @model_validator(mode="after")
    def _overlap_of_lists(self) -> PrepareConfig:
        if self.test_fraction and self.split_lists is not None:
            raise ValueError("test_fraction has no effect with split_lists, which name the test images")
        if self.accept_split_overlap and self.split_lists is None:
            raise ValueError("accept_split_overlap has no effect without split_lists")
        return self


class CollectionEntry(PrepareConfig):
    """One store of a collection."""

    root: Path = Field(Path(), description="Folder or archive of the raw data set, below the collection's root.")
    out: Path = Field(Path(), description="Not to be set: a store lies below the collection's out, under its name.")
    split_lists: Path | None = Field(None, description="As for one store; a folder below the collection's root.")


class CollectionConfig(Config):
    """`medvlp data prepare FILE ...`: several stores from one folder of raw data sets."""

    kind: Literal["collection"] = "collection"
    root: Path = Field(description="Folder of the raw data sets.")
    out: Path = Field(description="Folder of the stores.")
    stores: dict[str, CollectionEntry] = Field(min_length=1, description="Name of the store -> how it is prepared.")

    def entries(self) -> dict[str, PrepareConfig]:
        """Return name -> configuration of each store, with whole paths."""
        return {
            name: entry.model_copy(
                update={
                    "root": self.root / entry.root,
                    "out": self.out / name,
                    "split_lists": None if entry.split_lists is None else self.root / entry.split_lists,
                }
            )
            for name, entry in self.stores.items()
        }
