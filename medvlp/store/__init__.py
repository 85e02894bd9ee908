"""Prepared stores: `prepare` writes one from a raw data set, `Store` reads it, `audit` and `show` judge it."""
