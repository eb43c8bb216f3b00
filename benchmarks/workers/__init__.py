"""Processes that are timed by turns (`mindspore_worker`, `torch_worker`), and what drives them from outside."""
