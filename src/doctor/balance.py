"""Classes that are not there, or hardly."""

from src.data.classes import Classes
from src.doctor.census import Census
from src.doctor.finding import ERROR, NOTE, WARNING, Finding, name_some

RARE = 1e-4  # share of the labelled pixels below which a class is too rare to be learnt as it is
MANY = 0.1  # share of masks without any label that is worth a warning


def class_pixels(census: Census, classes: Classes) -> list[int]:
    """Pixels of each class in a split, (K,)."""
    return [census.class_pixels[k] for k in range(len(classes))]


def findings(census: Census, classes: Classes, training: bool) -> list[Finding]:
    """Classes without a pixel; for the split that is trained on, rare ones; masks without a label."""
    pixels = class_pixels(census, classes)
    total = sum(pixels)
    found = unlabelled(census)
    if not total:
        return found
    absent = [name for name, number in zip(classes.names, pixels, strict=True) if not number]
    if absent:
        effect = "they cannot be learnt" if training else "their scores are not defined and left out of the mean"
        listed = name_some(absent, shown=20)
        text = f"split {census.split}: {len(absent)} of {len(classes)} classes have no pixel: {listed}"
        mend = f"{effect}: draw the split anew, or leave the classes out"
        found.append(Finding("class_absent", WARNING, text, (), mend))
    shares = {name: number / total for name, number in zip(classes.names, pixels, strict=True)}
    rare = sorted((share, name) for name, share in shares.items() if 0 < share < RARE)
    if rare and training:
        most = max(range(len(pixels)), key=pixels.__getitem__)
        listed = name_some([f"{name} {share:.5%}" for share, name in rare])
        text = (
            f"split {census.split}: {len(rare)} classes have less than {RARE:.2%} of the labelled pixels: {listed}; "
            f"the most frequent, {classes.names[most]}, has {pixels[most] / total:.1%}"
        )
        mend = "add images that show them, merge them with others, or list such images several times"
        found.append(Finding("class_rare", WARNING, text, (), mend))
    return found


def unlabelled(census: Census) -> list[Finding]:
    """Masks in which every pixel is ignored."""
    count = census.unlabelled
    if not count:
        return []
    listed = name_some(census.blank, count)
    text = f"split {census.split}: {count} of {census.count} masks hold no labelled pixel: {listed}"
    mend = "label them or remove the pairs; they teach nothing and score nothing"
    if count == census.count:
        return [Finding("split_unlabelled", ERROR, text, tuple(census.blank), mend)]
    severity = WARNING if count > MANY * census.count else NOTE
    return [Finding("masks_unlabelled", severity, text, tuple(census.blank), mend)]
