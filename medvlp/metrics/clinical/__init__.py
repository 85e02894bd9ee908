"""What generated reports say of the patient, against what the references say.

Guarantee: `findings` needs nothing but medvlp and scores by its rule labeler; `radgraph` scores annotations that a file
holds. The published models (CheXbert, RadGraph, RaTEScore, GREEN) run from local folders and are loaded when they are
asked for; nothing is fetched, and where a folder is missing there is no value. Their weights are read without running
foreign code, and every key of a file is accounted for.
"""
