"""Predictions -> scores: of labels, masks, retrieval and reports, with patient-level intervals and paired tests.

Guarantee: every score is a function of what a task kept, and of nothing else. No module here imports torch before it is
needed, but those of `clinical` that run a published model.
"""
