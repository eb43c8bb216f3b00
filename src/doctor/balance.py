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
    pixels, found = class_pixels(census, classes), unlabelled(census)
    if not any(pixels):
        return found
    found += absent(census, classes, {k for k in range(len(classes)) if not pixels[k]}, training)
    return found + (rare(census, classes) if training else [])


def absent(census: Census, classes: Classes, ids: set[int], training: bool) -> list[Finding]:
    """Classes that a split does not show."""
    if not ids:
        return []
    effect = "they cannot be learnt" if training else "their scores are not defined and left out of the mean"
    listed = name_some([classes.names[k] for k in sorted(ids)], shown=20)
    text = f"split {census.split}: {len(ids)} of {len(classes)} classes have no pixel: {listed}"
    mend = f"{effect}: draw the split anew, or leave the classes out"
    return [Finding("class_absent", WARNING, text, (), mend)]


def rare(census: Census, classes: Classes) -> list[Finding]:
    """Classes with hardly a pixel."""
    pixels = class_pixels(census, classes)
    total = sum(pixels)
    shares = {name: number / total for name, number in zip(classes.names, pixels, strict=True)}
    few = sorted((share, name) for name, share in shares.items() if 0 < share < RARE)
    if not few:
        return []
    most = max(range(len(pixels)), key=pixels.__getitem__)
    listed = name_some([f"{name} {share:.5%}" for share, name in few])
    text = (
        f"split {census.split}: {len(few)} classes have less than {RARE:.2%} of the labelled pixels: {listed}; "
        f"the most frequent, {classes.names[most]}, has {pixels[most] / total:.1%}"
    )
    mend = "add images that show them, merge them with others, or list such images several times"
    return [Finding("class_rare", WARNING, text, (), mend)]


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
