"""Class names as vectors: tables on disk, the spellings of names, and CLIP's tokenizer. No network code."""
