"""What medicine knows beside the images: ontologies, books of places and findings, graphs, linked reports.

Guarantee: importing this package imports nothing heavy; torch is used for graph embeddings only, and only when asked.
"""
