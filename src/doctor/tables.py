"""The facts of a report for people."""

from collections.abc import Mapping

from rich.table import Table

from src.doctor.network import gibibytes


def class_table(facts: Mapping) -> Table:
    """Share of the labelled pixels and number of masks, by class and split."""
    table = Table(title="share of labelled pixels, and masks that hold the class", title_justify="left")
    table.add_column("class")
    for split in facts["splits"]:
        table.add_column(split, justify="right", no_wrap=True)
    for k, name in enumerate(facts["classes"]):
        rows = [split["classes"][k] for split in facts["splits"].values()]
        table.add_row(f"{k} {name}", *[f"{row['share']:.3%}  {row['masks']}" for row in rows])
    return table


def split_lines(facts: Mapping) -> list[str]:
    """What each split holds: samples, kinds of files, sizes, values."""
    lines = []
    for name, split in facts["splits"].items():
        kinds = [
            f"{what} {', '.join(f'{kind} {number}' for kind, number in counts.items()) or 'none'}"
            for what, counts in split["kinds"].items()
        ]
        sizes = ", ".join(f"{h} x {w} ({n})" for (h, w), n in ((s["size"], s["images"]) for s in split["sizes"][:3]))
        values = list(split["values"])
        shown = ", ".join(values[:24]) + (f" and {len(values) - 24} more" if len(values) > 24 else "")
        lines.append(
            f"{name}: {split['samples']} samples, {split['unusable']} with something wrong; {'; '.join(kinds)}; "
            f"height x width {sizes}{' and others' if len(split['sizes']) > 3 else ''}; values {shown}; "
            f"ignored pixels {split['ignored_pixels']}"
        )
    samples, seconds = sum(split["samples"] for split in facts["splits"].values()), facts["seconds"]
    return [*lines, f"{samples} pairs in {seconds:.1f} s ({samples / max(seconds, 1e-9):.0f} a second)"]


def fact_lines(facts: Mapping, depth: int = 0) -> list[str]:
    """Nested facts as indented lines; numbers of bytes as such where the name says so."""
    lines = []
    for key, value in facts.items():
        name = f"{'  ' * depth}{key.replace('_', ' ')}:"
        if isinstance(value, Mapping):
            lines += [name, *fact_lines(value, depth + 1)] if value else [f"{name} none"]
        elif isinstance(value, int) and not isinstance(value, bool) and value >= 2**20:
            lines.append(f"{name} {gibibytes(value)}" if key not in ("parameters",) or depth else f"{name} {value:,}")
        elif isinstance(value, list | tuple):
            lines.append(f"{name} {', '.join(map(str, value)) or 'none'}")
        else:
            lines.append(f"{name} {'none' if value is None else value}")
    return lines
