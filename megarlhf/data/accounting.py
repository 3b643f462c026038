"""What became of the rows of a data set: how many were dropped or cut, and why."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Finding:
    """Rows with which one thing was the matter.

    Attributes:
        count: How many.
        where: The first of them.
        tokens: Its tokens.
    """

    count: int
    where: str
    tokens: int


@dataclass
class RowReport:
    """What became of the rows of a data set.

    Attributes:
        rows: Rows read.
        kept: Rows that are trained on.
        tokens: Tokens of those.
        trained_tokens: Tokens of those that the loss is on.
        dropped: The others, by reason.
        cut: Rows among those kept that lost tokens, by reason.
    """

    rows: int = 0
    kept: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    dropped: dict[str, Finding] = field(default_factory=dict)
    cut: dict[str, Finding] = field(default_factory=dict)

    def add(self, other: "RowReport") -> None:
        """Take in the report on later rows."""
        self.rows += other.rows
        self.kept += other.kept
        self.tokens += other.tokens
        self.trained_tokens += other.trained_tokens
        for mine, theirs in ((self.dropped, other.dropped), (self.cut, other.cut)):
            for reason, finding in theirs.items():
                note(mine, reason, finding)

    def losses(self) -> list[str]:
        """A line for each reason for which rows were dropped or cut."""
        return [
            f"{verb} {finding.count} of {self.rows} rows: {reason} (first: {finding.where})"
            for verb, findings in (("dropped", self.dropped), ("cut", self.cut))
            for reason, finding in findings.items()
        ]

    def lines(self) -> list[str]:
        """The whole report, for people."""
        total = (
            f"{self.kept} of {self.rows} rows, {self.tokens} tokens, "
            f"{self.trained_tokens} of them trained on"
        )
        return [total, *self.losses()]

    def to_dict(self) -> dict[str, Any]:
        """JSON types only; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RowReport":
        """The report that `to_dict` gave."""
        findings = {
            name: {reason: Finding(**finding) for reason, finding in values[name].items()}
            for name in ("dropped", "cut")
        }
        return cls(**{**values, **findings})


def note(findings: dict[str, Finding], reason: str, finding: Finding) -> None:
    """Count a finding under its reason; the first place stays."""
    if reason in findings:
        findings[reason].count += finding.count
    else:
        findings[reason] = Finding(finding.count, finding.where, finding.tokens)
