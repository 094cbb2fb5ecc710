"""The summary of one recorded run, as the command prints it."""

import textwrap

from analysis.records import Record


def summary(records: list[Record]) -> str:
    """The summary of the liquid model solved by rk4, else of the first run that ends in text; "" for none."""
    ended = [record for record in records if (record.result.get("evaluation") or {}).get("sample")]
    if not ended:
        return ""
    liquid = [r for r in ended if (r.result["model"], r.result.get("solver")) == ("ltc", "rk4")]
    return _summary((liquid or ended)[0].result)


def _summary(result: dict) -> str:
    training, evaluation, sample = result["training"], result["evaluation"], result["evaluation"]["sample"]
    checks = result["checks"]["results"]
    lines = [
        result["name"],
        f"  parameters         {result['parameters']['total']:,}",
        f"  checks             {sum(check['passed'] is True for check in checks)} of {len(checks)} passed",
        f"  trained            {training['tokens']:,} tokens, {training['updates']:,} updates, "
        f"{training['tokens_per_second']:,.0f} tokens/s",
        *(f"  {split:<18} {evaluation[split]['bits_per_byte']:.3f} bits per byte" for split in ("validation", "test")),
        *(_context(row) for row in result["measurement"]["contexts"] if row["decode_ms_p50"] is not None),
        "  sample             " + _indented(sample["prompt"] + sample["text"]),
    ]
    return "\n".join(["```text", *lines, "```"])


def _context(row: dict) -> str:
    where, held = f"after {row['context']:,} tokens", f"{row['state_bytes']:,} bytes of state"
    return f"  {where:<22} {held}, {row['decode_ms_p50']:.2f} ms a token"


def _indented(text: str) -> str:
    """The text wrapped beneath where it begins, with nothing that could end the fence."""
    lines = [part for line in text.replace("```", "'''").splitlines() for part in textwrap.wrap(line, 96) or [""]]
    return "\n".join((" " * 21 + line).rstrip() for line in lines).lstrip()
