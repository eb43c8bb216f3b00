"""When shape helps: compactness of masks, locality of classes in text space, and how gains go with both. NumPy."""
