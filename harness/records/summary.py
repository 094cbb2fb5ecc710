"""The summary a run ends with."""

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from harness.config.errors import RecordError


def show(result: dict, console: Console | None = None) -> None:
    """Prints one record as a person reads it; raises RecordError where parts of it are missing."""
    try:
        _show(result, console or Console())
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"The record {result.get('name')}-{result.get('key')} is not whole ({type(error).__name__}: {error}).",
            "a result.json as run.py wrote it.",
            "make the run again with force=true, or move its folder away.",
        ) from error


def _show(result: dict, console: Console) -> None:
    console.print(_headline(result))
    if result["status"] == "diverged":
        divergence = result["training"]["divergence"]
        console.print(f"Training diverged at update {divergence['update']}: {divergence['reason']}.", style="bold red")
        return
    console.print(_contexts(result["measurement"]))
    sample = result["evaluation"].get("sample")
    if sample:
        console.print(Panel(f"[bold]{_plain(sample['prompt'])}[/bold]{_plain(sample['text'])}", title="sample of text"))


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _headline(result: dict) -> Table:
    table = Table("figure", "value", title=result["name"], title_justify="left")
    counts, training, evaluation = result["parameters"], result["training"], result["evaluation"]
    table.add_row("parameters", f"{counts['total']:,} ({counts['non_embedding']:,} without embeddings)")
    epochs = "no example twice" if training["epochs"] is None else f"{training['epochs']:.2f} epochs"
    table.add_row("trained", f"{training['tokens']:,} tokens, {training['updates']:,} updates, {epochs}")
    if training["tokens_per_second"]:
        table.add_row("training tokens/s", f"{training['tokens_per_second']:,.0f}")
    for split in {"finished": ("validation", "test"), "diverged": ()}[result["status"]]:
        figures = evaluation[split]
        if "bits_per_byte" in figures:
            table.add_row(
                f"{split} bits per byte",
                f"{figures['bits_per_byte']:.3f} (perplexity per word {figures['perplexity_per_word']:,.1f})",
            )
        elif "accuracy" in figures:
            table.add_row(f"{split} accuracy", f"{figures['accuracy']:.3f}")
        else:
            metric = next(iter(figures))
            table.add_row(f"{split} {metric.replace('_', ' ')}", f"{figures[metric]:.4g}")
    table.add_row("checks", checks_line(result["checks"]["results"]))
    return table


def checks_line(checks: list[dict]) -> str:
    """How many of the checks that could be tried passed, and which could not: "12 of 12 passed, no oracle"."""
    tried = [check for check in checks if check.get("passed") is not None]
    passed = sum(check["passed"] is True for check in tried)
    untried = [check.get("name") for check in checks if check.get("passed") is None]
    notes = ["no oracle" if name == "oracle" else f"{name} not tried" for name in untried]
    return ", ".join([f"{passed} of {len(tried)} passed", *notes])


def _contexts(measurement: dict) -> Table:
    title = f"generation on {measurement['device_name']}, {measurement['threads']} threads"
    table = Table("context", "state bytes", "decode ms/token p50", "decode tokens/s", "first token ms", title=title)
    for row in measurement["contexts"]:
        cells = [row.get(key) for key in ("decode_ms_p50", "decode_tokens_per_second", "first_token_ms")]
        held = row.get("state_bytes")
        shown = ["not measured" if cell is None else f"{cell:,.2f}" for cell in cells]
        table.add_row(f"{row['context']:,}", "not held" if held is None else f"{held:,}", *shown)
    return table
