"""What may stand in a configuration file, by kind: `prepare`, `collection`, `pretrain`, `task`, `suite`.

Guarantee: importing this module imports no torch. Every field has a range and a default or is required; rules that join
two fields are checked here, so that a bad file starts nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from medvlp.config.base import Config
from medvlp.config.cluster import ClusterConfig
from medvlp.config.identifiers import IdentifierConfig
from medvlp.config.knowledge import KnowledgeConfig
from medvlp.config.preprocessing import ModelInputConfig, StoredImageConfig, StoredVideoConfig, StoredVolumeConfig

Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Protocol = Literal["linear_probe", "knn", "few_shot", "fine_tune", "zero_shot"]


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
        if self.accept_split_overlap and self.split_lists is None:
            raise ValueError("accept_split_overlap has no effect without split_lists")
        return self


class CollectionEntry(PrepareConfig):
    """One store of a collection."""

    root: Path = Field(Path(), description="Folder or archive of the raw data set, below the collection's root.")
    out: Path = Field(Path(), description="Not to be set: a store lies below the collection's out, under its name.")


class CollectionConfig(Config):
    """`medvlp data prepare FILE ...`: several stores from one folder of raw data sets."""

    kind: Literal["collection"] = "collection"
    root: Path = Field(description="Folder of the raw data sets.")
    out: Path = Field(description="Folder of the stores.")
    stores: dict[str, CollectionEntry] = Field(min_length=1, description="Name of the store -> how it is prepared.")

    def entries(self) -> dict[str, PrepareConfig]:
        """Return name -> configuration of each store, with whole paths."""
        return {
            name: entry.model_copy(update={"root": self.root / entry.root, "out": self.out / name})
            for name, entry in self.stores.items()
        }


class RunConfig(Config):
    """Where a run lives and from which seed it starts."""

    dir: Path
    seed: int = 0
    name: str | None = None


class AugmentConfig(Config):
    """Random changes of a training image and of its text. Each is off at its neutral value."""

    crop_scale: tuple[Fraction, Fraction] = Field((0.6, 1.0), description="Share of the area that a crop keeps.")
    crop_ratio: tuple[Positive, Positive] = Field((0.85, 1.18), description="Width by height of a crop, log-uniform.")
    rotate_degrees: float = Field(0.0, ge=0, le=45)
    flip: bool = Field(False, description="Mirror every second image; its text, triplets and labels swap sides, too.")
    brightness: float = Field(0.2, ge=0, lt=1)
    contrast: float = Field(0.2, ge=0, lt=1)
    invert: float = Field(0.0, ge=0, le=1, description="Probability of a grey-value inversion.")
    shuffle_sentences: bool = False
    drop_words: float = Field(0.0, ge=0, lt=1, description="Probability that a word of the augmented text is dropped.")


class PretrainDataConfig(Config):
    """What a method is trained on."""

    store: Path
    reports: Path | None = Field(None, description="Report collection (tgz or folder) for unpaired methods.")
    split: str = "train"
    labels: tuple[str, ...] = Field((), description="Label columns used; empty takes those of the card.")
    reports_source: str = Field("iu_xray_reports", description="Name of the data set that data.reports is.")
    sections: tuple[Literal["findings", "impression"], ...] = ("findings", "impression")
    knowledge: Path | None = Field(
        None, description="Knowledge bank (medvlp knowledge build) for methods that need triplets, concepts or groups."
    )
    min_concept_count: int = Field(1, ge=1, description="Concepts that fewer texts name are left out.")
    views: tuple[str, ...] = Field((), description="Views used, e.g. [PA, AP]; empty uses all.")
    sentences: Literal["images", "findings", "reports"] = Field(
        "images",
        description="Unpaired methods: findings of the drawn sentences as often as among the images, all as often, "
        "or as often as in the reports.",
    )
    augment: AugmentConfig = AugmentConfig()
    num_workers: int = Field(2, ge=0, le=64, description="Loader threads; 0 loads in the training thread.")
    prefetch: int = Field(4, ge=1, le=64, description="Batches made ahead.")


class ImageTowerConfig(Config):
    """An image backbone by its timm name."""

    name: str = "resnet18"
    weights: Path | None = Field(None, description="Local folder or safetensors file to start from.")
    drop_path: float = Field(0.0, ge=0, lt=1)
    args: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of timm's constructor, e.g. depth: 4 of a ViT."
    )
    tap: Literal["layer2", "layer3"] | None = Field(
        None,
        description="Stage of a ResNet that the tokens come from; null is the last. The pooled vector does not move.",
    )
    truncate: bool = Field(False, description="Leave out what lies behind the tap, and pool there.")
    upsample: int | None = Field(None, ge=16, description="Side to which pixels are enlarged before the backbone.")
    attention: bool = Field(False, description="Return what the class token of a ViT attends to in its last block.")
    freeze: bool = Field(False, description="No gradient, and evaluation mode, while the rest trains.")
    input: ModelInputConfig = ModelInputConfig()

    @model_validator(mode="after")
    def _truncation_needs_a_tap(self) -> ImageTowerConfig:
        if self.truncate and self.tap is None:
            raise ValueError("truncate has no effect without tap")
        return self


class TextTowerConfig(Config):
    """A text tower: a local Hugging Face folder, or a fresh one with a tokenizer trained on the corpus."""

    folder: Path | None = Field(None, description="Local Hugging Face model and tokenizer folder.")
    architecture: dict[str, Any] | None = Field(
        None, description="Transformers configuration; written when a model is saved, so that it needs no folder."
    )
    family: Literal["bert", "clip", "siglip"] = Field(
        "bert",
        description="Of a fresh tower: BERT, or the text side of CLIP (causal) or SigLIP; a folder says its own.",
    )
    hidden: int = Field(256, ge=16)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    vocab_size: int = Field(4096, ge=64)
    max_tokens: int = Field(96, ge=4, le=4096)
    tokens: Literal["last", "last_4_sum"] = Field("last", description="Layers that token features come from.")
    pool: Literal["cls", "eos", "pooler", "mean", "layers_1_2_12"] = Field(
        "mean",
        description="cls: first token; eos: last real token (CLIP); pooler: BERT's tanh layer on the first token, "
        "SigLIP's head on the last slot; mean: over real tokens.",
    )
    attention: bool = Field(False, description="Return what the class token attends to in the last layer; slower.")
    freeze: bool = Field(False, description="The whole tower stays fixed.")
    freeze_layers: int = Field(0, ge=0, description="Embeddings and this many first layers stay fixed.")
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _width_divides(self) -> TextTowerConfig:
        if self.folder is None and self.architecture is None and self.hidden % self.heads:
            raise ValueError(f"hidden ({self.hidden}) must be a multiple of heads ({self.heads})")
        return self


class ProjectionConfig(Config):
    """Projection from tower width to the shared space."""

    dim: int = Field(256, ge=2)
    hidden: int | None = Field(None, ge=2, description="Width of a hidden layer; None is one linear map.")
    activation: Literal["relu", "gelu"] = "relu"
    batch_norm: Literal["none", "hidden", "both"] = Field(
        "none", description="Batch normalisation of the hidden layer, or of hidden and output (that without weights)."
    )
    bias: bool = True

    @model_validator(mode="after")
    def _norm_needs_a_hidden_layer(self) -> ProjectionConfig:
        if self.hidden is None and self.batch_norm != "none":
            raise ValueError("batch_norm has no effect without hidden")
        return self


class MatryoshkaConfig(Config):
    """Matryoshka learning (arXiv 2205.13147): the loss also of the first dimensions of the shared space alone."""

    prefixes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="Numbers of leading dimensions, rising, e.g. [8, 16, 32, 64, 128]; empty is off."
    )
    weights: tuple[Annotated[float, Field(ge=0)], ...] = Field((), description="One per prefix; empty is 1 each.")

    @model_validator(mode="after")
    def _rising_with_a_weight_each(self) -> MatryoshkaConfig:
        if list(self.prefixes) != sorted(set(self.prefixes)):
            raise ValueError(f"prefixes must rise: {list(self.prefixes)}")
        if self.weights and len(self.weights) != len(self.prefixes):
            raise ValueError(f"{len(self.weights)} weights do not belong to {len(self.prefixes)} prefixes")
        return self


class MethodConfig(Config):
    """Towers, objectives and switches of a method.

    What may stand in `objectives` and `options` is what the method's own YAML in `configs/methods` declares; the loader
    checks it.
    """

    name: str
    image: ImageTowerConfig = ImageTowerConfig()
    text: TextTowerConfig | None = TextTowerConfig()
    projection: ProjectionConfig = ProjectionConfig()
    matryoshka: MatryoshkaConfig = MatryoshkaConfig()
    objectives: dict[str, dict[str, Any]] = Field(default_factory=dict, description="Term -> weight and its constants.")
    options: dict[str, Any] = Field(default_factory=dict)


class OptimizerConfig(Config):
    """Optimiser and learning-rate schedule: linear warm-up, then down to `min_lr_ratio`."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Positive = 3e-4
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: Positive = 1e-8
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    momentum: float = Field(0.9, ge=0, lt=1)
    warmup_steps: int = Field(50, ge=0)
    min_lr_ratio: float = Field(0.01, ge=0, le=1)
    clip_norm: float | None = Field(1.0, gt=0)


class TrainConfig(Config):
    """The training loop."""

    steps: int = Field(1000, ge=1)
    batch_size: int = Field(64, ge=1, description="Samples per optimiser step over all ranks.")
    accumulate: int = Field(1, ge=1, description="Micro-batches per optimiser step.")
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["fp32", "bf16"] = "fp32"
    ema: float | None = Field(
        None, gt=0, lt=1, description="Decay of an averaged copy; the copy is what is saved in model/."
    )
    gradient_checkpointing: bool = False
    compile: bool = False
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_every: int = Field(200, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    log_every: int = Field(10, ge=1)
    validate_every: int = Field(200, ge=1)

    @model_validator(mode="after")
    def _batch_splits(self) -> TrainConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of accumulate ({self.accumulate})")
        return self


class TrackConfig(Config):
    """Where curves go. A local `metrics.jsonl` is always written."""

    mlflow: bool = True
    uri: str | None = Field(
        None, description="Tracking server; default MLFLOW_TRACKING_URI, else a SQLite file beside the run."
    )
    experiment: str = "medvlp"
    system_metrics: bool = True


class PretrainConfig(Config):
    """`medvlp pretrain`."""

    kind: Literal["pretrain"] = "pretrain"
    run: RunConfig
    data: PretrainDataConfig
    method: MethodConfig
    train: TrainConfig = TrainConfig()
    track: TrackConfig = TrackConfig()


class LabelConfig(Config):
    """A binary question: samples with `positive` against samples with `negative`; all others are left out."""

    name: str
    positive: str = Field(description="Label column that must be 1.")
    negative: str | None = Field(
        None, description="Label column that must be 1 for a negative; None: `positive` must be 0."
    )
    prompts: dict[Literal["positive", "negative"], tuple[str, ...]] = Field(default_factory=dict)
    regions: tuple[str, ...] = Field(
        (), description="Grounding: names of its boxes or masks; empty takes those named `positive`."
    )


class FineTuneConfig(Config):
    """End-to-end training of encoder and linear head; the epoch with the best validation score is kept."""

    epochs: int = Field(20, ge=1)
    batch_size: int = Field(32, ge=1)
    lr: Positive = 3e-4
    encoder_lr_ratio: Positive = 1.0
    weight_decay: float = Field(0.05, ge=0)
    warmup_steps: int = Field(20, ge=0)
    ema: float | None = Field(None, gt=0, lt=1, description="Decay of an averaged copy, which is validated and kept.")
    input_size: int | None = Field(None, ge=16, le=2048, description="Side in pixels; None takes the encoder's own.")
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="after")
    def _no_text(self) -> FineTuneConfig:
        if self.augment.shuffle_sentences or self.augment.drop_words:
            raise ValueError("shuffle_sentences and drop_words change texts, and fine-tuning has none: leave them out")
        return self


class GroundingConfig(Config):
    """Where a finding is said to be."""

    target: Literal["boxes", "masks"] = "boxes"


class RetrievalConfig(Config):
    """Which text of a study is looked for."""

    sections: tuple[Literal["findings", "impression"], ...] = Field(("findings", "impression"), min_length=1)


class TaskConfig(Config):
    """One task of the benchmark. `version` rises with every change that can move a number."""

    kind: Literal["task"] = "task"
    name: str
    version: int = Field(ge=1)
    type: str = Field("classification", description="Module of medvlp.tasks.")
    dataset: str
    labels: tuple[LabelConfig, ...] = Field((), description="What is asked; a retrieval task asks no label.")
    uncertain: Literal["ignore", "positive", "negative"] = "ignore"
    not_mentioned: Literal["ignore", "negative"] = "ignore"
    views: tuple[str, ...] = Field((), description="Views used; empty uses all.")
    linear_probe_c: tuple[Positive, ...] = Field(
        (0.001, 0.01, 0.1, 1.0, 10.0), description="Inverse penalties tried on val."
    )
    knn_k: tuple[Annotated[int, Field(ge=1)], ...] = (1, 5, 10, 20, 50)
    fine_tune: FineTuneConfig = FineTuneConfig()
    grounding: GroundingConfig = GroundingConfig()
    retrieval: RetrievalConfig = RetrievalConfig()

    @model_validator(mode="after")
    def _labels_where_they_are_asked(self) -> TaskConfig:
        if self.type == "retrieval" and self.labels:
            raise ValueError("labels has no effect on retrieval: leave it out")
        if self.type in ("classification", "grounding") and not self.labels:
            raise ValueError("labels must name one label or more")
        return self


class SuiteEntry(Config):
    """One task with the protocols, label fractions, seeds and draws to run it at."""

    task: str
    protocols: tuple[Protocol, ...] = Field(min_length=1)
    fractions: tuple[Fraction, ...] = Field((1.0,), min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    draws: int = Field(1, ge=1, description="Label subsets drawn per fraction below 1.")
    shots: tuple[Annotated[int, Field(ge=1)], ...] = Field((), description="Samples per class in few_shot.")
    set: dict[str, Any] = Field(
        default_factory=dict, description="Task fields replaced for this suite, e.g. fine_tune.epochs."
    )

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> SuiteEntry:
        few_shot = "few_shot" in self.protocols
        if few_shot and not self.shots:
            raise ValueError("few_shot needs shots, e.g. shots: [1, 4, 16]")
        if self.shots and not few_shot:
            raise ValueError("shots has no effect without the protocol few_shot")
        if min(self.fractions, default=1.0) < 1 and not set(self.protocols) - {"few_shot", "zero_shot"}:
            raise ValueError("fractions has no effect on few_shot and zero_shot")
        if self.draws > 1 and not few_shot and min(self.fractions, default=1.0) == 1:
            raise ValueError("draws has no effect without a fraction below 1 or few_shot: all labels are one subset")
        return self


class SuiteConfig(Config):
    """`medvlp bench run`."""

    kind: Literal["suite"] = "suite"
    name: str
    version: int = Field(ge=1)
    description: str = ""
    entries: tuple[SuiteEntry, ...] = Field(min_length=1)
    baselines: tuple[Literal["random", "metadata", "image_statistics", "majority", "location_prior"], ...] = (
        "random",
        "metadata",
        "image_statistics",
        "majority",
        "location_prior",
    )
    bootstrap_resamples: int = Field(1000, ge=10)
    bootstrap_seed: int = 0
    alpha: float = Field(0.05, gt=0, lt=1)


KINDS: dict[str, type[Config]] = {
    "prepare": PrepareConfig,
    "knowledge": KnowledgeConfig,
    "collection": CollectionConfig,
    "pretrain": PretrainConfig,
    "task": TaskConfig,
    "suite": SuiteConfig,
}
