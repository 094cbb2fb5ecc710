"""All findings in their order, and as Markdown."""

from collections.abc import Iterable

from analysis.findings import corpora, cost, factors, gaps, pairs
from analysis.findings.evidence import Evidence
from analysis.findings.finding import Finding

TOLD_BY = (
    gaps.answer,
    pairs.pairs,
    pairs.one_block,
    pairs.other_sizes,
    factors.factors,
    factors.learning_rates,
    corpora.scaling,
    corpora.transfer,
    corpora.compressors,
    cost.uncut,
    cost.state,
    cost.processes,
    cost.decoding,
    cost.under_policy,
    cost.training,
    cost.costs,
    cost.gradients,
    cost.newton,
    gaps.target,
    gaps.sweeps,
)
"""What each takes from the evidence and how it is told; one that finds nothing says that it is not measured."""


def build(evidence: Evidence) -> list[Finding]:
    """All findings, by topic in the order of the topics' first."""
    found = [finding for tell in TOLD_BY for finding in tell(evidence)]
    topics = list(dict.fromkeys(finding.topic for finding in found))
    return sorted(found, key=lambda finding: topics.index(finding.topic))


def markdown(findings: Iterable[Finding]) -> str:
    """Every finding under its topic, with its commands."""
    lines, topic = [], ""
    for finding in findings:
        if finding.topic != topic:
            topic = finding.topic
            lines += ["", f"### {topic}", ""]
        lines.append(f"- {_escaped(finding.sentence)}{_commands(finding)}")
    return "\n".join(lines).strip() + "\n"


def headline(findings: Iterable[Finding]) -> str:
    """The findings that the README tells, a line each; "" for none."""
    return "\n".join(f"- {_escaped(finding.sentence)}" for finding in findings if finding.headline)


def _commands(finding: Finding) -> str:
    return "".join(f"\n  `{command}`" for command in finding.commands)


def _escaped(text: str) -> str:
    """Text that Markdown shows as it stands."""
    return "".join(f"\\{letter}" if letter in "\\`*[]<>" else letter for letter in text)
