"""Several data sets into several stores, by one configuration.

Guarantee: a data set that cannot be prepared does not keep the others from being prepared; all that failed is named at
the end.
"""

from __future__ import annotations

import logging

from medvlp.config.prepare import CollectionConfig
from medvlp.errors import UserError
from medvlp.store.prepare import PrepareSummary, prepare

logger = logging.getLogger(__name__)


def prepare_collection(config: CollectionConfig) -> list[PrepareSummary]:
    """Prepare every store of a collection, in the order of the file.

    Raises:
        UserError: At least one data set could not be prepared; each is listed with its reason.
    """
    summaries, failures = [], []
    for name, entry in config.entries().items():
        try:
            summaries.append(prepare(entry))
        except UserError as error:
            logger.warning("%s: %s", name, error.what)
            failures.append(f"{name}: {error.what} Next: {error.fix}")
    if failures:
        raise UserError(
            f"{len(failures)} of {len(config.stores)} data sets could not be prepared:\n    " + "\n    ".join(failures),
            config.root,
            "Mend what is named and run the same command again; finished stores are kept.",
        )
    return summaries
