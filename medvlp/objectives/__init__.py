"""Objectives: pure functions from features to `(value, count)`; with nothing to score, 0 and count 0 in a graph."""
