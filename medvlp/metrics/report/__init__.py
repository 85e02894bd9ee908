"""Generated reports against reference reports: BLEU, ROUGE-L, METEOR and CIDEr.

Guarantee: every metric has a value per sample, one for all samples, and one per resample of patients, all three from
the same counts; the values equal those of the COCO caption scorers (`pycocoevalcap`), without Java.
"""
