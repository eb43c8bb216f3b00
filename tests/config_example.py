"""A complete small config for the tests, and how they write one."""

from pathlib import Path

# Line numbers in the tests below count in this text.
COMPLETE = """\
data:
  dataset: folder
  crop_size: [64, 96]
model:
  backbone: {name: vit_tiny, drop_path: 0.1}
  head:
    name: ecenet
    channels: 32
loss: {name: class_mask}
optimizer:
  name: adamw
  lr: 6e-5
train:
  steps: 100
  batch_size: 2
eval:
  size: [64, 64]
"""


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    """Writes `text` to `folder`/`name` and returns that path."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
