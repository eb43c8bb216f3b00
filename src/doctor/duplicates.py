"""Images that occur more than once, found by a hash of their pixels."""

from collections.abc import Sequence

from src.doctor.census import NAMED, Census
from src.doctor.finding import ERROR, NOTE, Finding, name_some


def findings(censuses: Sequence[Census]) -> list[Finding]:
    """Equal images in two splits, which spoil the scores, and within one."""
    found = []
    for i, first in enumerate(censuses):
        for second in censuses[i + 1 :]:
            found += across(first, second)
        if first.repeated:
            pairs = [f"{name} = {earlier}" for name, earlier in first.repeated]
            text = f"split {first.split}: equal images under several names: {name_some(pairs)}"
            found.append(Finding("image_repeated", NOTE, text, tuple(name for name, _ in first.repeated)))
    return found


def across(first: Census, second: Census) -> list[Finding]:
    """Images of one split that are in another one, too."""
    same = sorted(first.places.keys() & second.places.keys(), key=first.places.__getitem__)
    if not same:
        return []
    pairs = [f"{first.places[digest]} = {second.places[digest]}" for digest in same[:NAMED]]
    text = f"{len(same)} images of split {first.split} are in split {second.split}, too: {name_some(pairs, len(same))}"
    mend = f"remove them from {first.split}, or scores on {second.split} say nothing about images never seen"
    return [Finding("image_in_two_splits", ERROR, text, tuple(pairs), mend)]
