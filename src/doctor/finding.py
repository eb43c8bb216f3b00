"""What a check has to say, and what all of it means together."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)
SCHEMA = 1  # of the JSON report: raised when a key is renamed or goes, not when one is added


@dataclass(frozen=True)
class Finding:
    """One thing found.

    code: what kind it is, stable, for programs. severity: `error` (a training fails or learns what is wrong),
    `warning` (probably a mistake) or `note`. where: files, the first of them where there are many. mend: what to do.
    """

    code: str
    severity: str
    text: str
    where: tuple[str, ...] = ()
    mend: str = ""


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """The findings that are errors."""
    return [finding for finding in findings if finding.severity == ERROR]


def passes(findings: Iterable[Finding], strict: bool = False) -> bool:
    """Whether there is no error and, if strict, no warning."""
    return all(finding.severity == NOTE or (finding.severity == WARNING and not strict) for finding in findings)


def to_report(command: str, findings: list[Finding], facts: dict, strict: bool = False) -> dict:
    """The report as written with --json: schema, command, ok, counts, findings (worst first), facts."""
    ordered = sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
    counts = {severity: sum(finding.severity == severity for finding in findings) for severity in SEVERITIES}
    listed = [{**asdict(finding), "where": list(finding.where)} for finding in ordered]
    ok = passes(findings, strict)
    return {"schema": SCHEMA, "command": command, "ok": ok, "counts": counts, "findings": listed, "facts": facts}


def to_text(finding: Finding) -> str:
    """`error code: text`, with what mends it on lines of its own."""
    lines = [f"{finding.severity} {finding.code}: {finding.text}"]
    return "\n".join(lines + [f"    {line}" for line in finding.mend.splitlines()])


def name_some(names: list[str], count: int | None = None, shown: int = 5) -> str:
    """`a, b, c and 4 more` of names, or of `count` where only the first names are at hand."""
    total = len(names) if count is None else count
    listed = names[:shown]
    return ", ".join(listed) + (f" and {total - len(listed)} more" if total > len(listed) else "")
