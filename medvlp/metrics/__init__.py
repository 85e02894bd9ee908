"""Predictions -> scores: classification metrics, DeLong, patient-level bootstrap, correction for multiplicity.

Guarantee: no module here imports torch; every score is a function of labels and scores alone.
"""
