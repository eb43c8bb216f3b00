"""Files that cannot be used as they are."""

from collections.abc import Mapping

from src.doctor.census import Census
from src.doctor.finding import ERROR, WARNING, Finding, name_some

MEND = {
    "image_empty": "copy the file again or remove the pair",
    "image_truncated": "copy the file again or remove the pair",
    "image_corrupt": "copy the file again or remove the pair",
    "image_unreadable": "copy or convert the file, or remove the pair; data.on_bad_sample=skip trains without it",
    "image_turned": "store both upright: turn the image as its tag says, and the label unless it was drawn on the "
    "image as it is shown; remove the tag",
    "mask_empty": "export the label again or remove the pair",
    "mask_truncated": "copy the file again or export it anew",
    "mask_corrupt": "copy the file again or export it anew",
    "mask_unreadable": "copy the file again or export it anew",
    "mask_jpeg": "export the labels anew as PNG; what JPEG has changed cannot be brought back",
    "mask_alpha": "save the label without its alpha channel, as PNG with one channel of class indices",
    "mask_kind": "save the label as PNG with one channel of class indices (8 bit, 16 bit or palette)",
    "mask_rgb": "map colours to class indices and save them as PNG with one channel (8 bit, 16 bit or palette)",
    "size_differs": "export the label at the image's size; resize labels with the nearest neighbour only",
    "size_turned": "apply the orientation to the image and remove the tag, or export the label upright",
    "values_outside_table": "correct the files, or add the values to the table of the data set",
}
WARNINGS = ("image_turned",)


def findings(census: Census, mends: Mapping[str, str] = MEND) -> list[Finding]:
    """One finding for each kind of problem of a split, with what mends it; all files are named, up to a number."""
    found = []
    for code, problems in census.problems.items():
        count = census.problem_counts[code]
        text = problems[0].text
        if count > 1:
            others = name_some([problem.file for problem in problems[1:]], count - 1)
            text = f"{count} files, the first: {text}. The others: {others}"
        severity = WARNING if code in WARNINGS else ERROR
        where = tuple(problem.file for problem in problems)
        found.append(Finding(code, severity, f"split {census.split}: {text}", where, mends[code]))
    return found
