"""What may stand in a configuration file, by kind: `prepare`, `knowledge`, `collection`, `pretrain`, `task`, `suite`.

Guarantee: importing this module imports no torch. Every field has a range and a default or is required; rules that join
two fields are checked by its class, so that a bad file starts nothing.
"""

from __future__ import annotations

from medvlp.config.base import Config
from medvlp.config.knowledge import KnowledgeConfig
from medvlp.config.prepare import CollectionConfig, PrepareConfig
from medvlp.config.suite import SuiteConfig
from medvlp.config.task import TaskConfig
from medvlp.config.train import PretrainConfig

KINDS: dict[str, type[Config]] = {
    "prepare": PrepareConfig,
    "knowledge": KnowledgeConfig,
    "collection": CollectionConfig,
    "pretrain": PretrainConfig,
    "task": TaskConfig,
    "suite": SuiteConfig,
}
