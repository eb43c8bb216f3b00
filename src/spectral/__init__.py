"""Eigensegments: shapes from the Laplacian of an image's features, their cache, and fusion with predictions. NumPy."""
