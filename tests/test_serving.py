"""docs/serving.md's tables, from synthetic records and from the bench's files."""

import json
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from analysis import cost, serving
from analysis.__main__ import main
from test_verdict import made, record, rows

CACHED = {"transformer": 4096, "transformer_gqa": 1024}
"""Bytes a token of these models' caches."""


@pytest.fixture
def runs(tmp_path):
    """A model of constant state and two whose cache is cut to 512 tokens; one of them was never timed alone."""
    for model in ("ltc", *CACHED):
        cached = CACHED.get(model)
        policy = {"kind": "window", "tokens": 512} if cached else {"kind": "state", "tokens": None}
        path = record(tmp_path / "runs", model, 0, 2.0, policy=policy, busy=model == "transformer_gqa")
        config, result = (json.loads((path / f"{name}.json").read_text()) for name in ("config", "result"))
        config["trainer"]["length"] = 512
        result |= {"width": {"d_model": 128, "n_layers": 4}}
        result["parameters"] |= {"embedding": 65_536}
        result["training"]["flops_per_token"] = 6.5e6
        for row in result["measurement"]["contexts"]:
            row |= {"state_bytes": 512 * cached if cached else 10_240, "decode_ms_p50": 0.25}
            row |= {"decode_tokens_per_second": 4000.0}
        (path / "config.json").write_text(json.dumps(config))
        (path / "result.json").write_text(json.dumps(result))
    return tmp_path / "runs"


def test_sessions_and_dollars_are_of_the_state_as_kept_and_as_it_is_uncut(runs):
    known, even, larger = made(runs).verdict.serving
    prices = cost.read()
    by_cache = {(row[0], row[1]): dict(zip(known.header, row, strict=True)) for row in known.rows}
    assert set(by_cache) == {("ltc", "state"), *((m, c) for m in CACHED for c in ("window 512", "full"))}
    assert by_cache["ltc", "state"]["sessions per GB at 128k"] == f"{10**9 // 10_240:,}"
    for model, a_token in CACHED.items():
        assert by_cache[model, "window 512"]["sessions per GB at 32k"] == f"{10**9 // (512 * a_token):,}"
        assert by_cache[model, "full"]["sessions per GB at 32k"] == f"{10**9 // (32768 * a_token):,}"
        assert by_cache[model, "full"]["ms a token at 1k"] == "not measured"
    assert by_cache["transformer", "window 512"]["ms a token at 1k"] == "0.2*"
    assert by_cache["transformer_gqa", "window 512"]["ms a token at 1k"] == "not measured"  # the machine was busy
    hours = 1e6 / prices.serving.tokens_per_session_hour
    held = 512 * 4096 / 1e9 * prices.serving.memory_dollars_per_gb_hour * hours
    total = held + 1e6 / 4000 / 3600 * prices.measured.dollars_per_hour
    assert by_cache["transformer", "window 512"]["$ per million tokens at 1k"] == f"${total:.1g}*"
    assert "Not measured: ltc_published, " in known.notes[-1]

    assert list(rows(even)) == ["ltc"]
    assert rows(even)["ltc"]["state"] == "10.2 kB"
    assert [rows(even)["ltc"][rival] for rival in serving.RIVALS] == ["3", "11", "not measured"]
    assert rows(larger)["transformer"]["sessions per GB at 128k"] == "0"
    assert rows(larger)["transformer"]["cache"] == "full"
    assert larger.notes[0].startswith("Extrapolation, not a measurement")


def test_what_the_bench_timed_stands_before_a_runs_own_and_for_a_cache_that_is_not_cut(runs, tmp_path):
    (folder := tmp_path / "measured").mkdir()
    whole = {"machine": {"cpu": "CPU of tests", "threads": 2, "gpu": None}, "skipped": {}, "channels": 256}
    rows = [{"what": "decoding", "contestant": name, "length": 32768, "decode_ms": 2.0} for name in ("ltc", "mamba")]
    rows += [{"what": "training", "contestant": "ltc", "length": 512, "tokens_per_second": 1e4, "parameters": 999_840}]
    (folder / "models.json").write_text(json.dumps(whole | {"rows": rows}))
    known, *_ = made(runs, folder).verdict.serving
    ltc = dict(zip(known.header, next(row for row in known.rows if row[0] == "ltc"), strict=True))
    assert (ltc["ms a token at 1k"], ltc["ms a token at 32k"], ltc["parameters"]) == ("0.2*", "2 (2 to 2)", "1,000,448")
    assert "mamba 2 ms a token" in known.notes[1]


def test_a_model_measured_at_one_context_is_not_measured(tmp_path):
    """Whether its state grows is not known."""
    path = record(tmp_path / "runs", "ltc", 0, 2.0)
    result = json.loads((path / "result.json").read_text())
    result["measurement"]["contexts"] = [{**result["measurement"]["contexts"][0], "context": 1024, "state_bytes": 7}]
    (path / "result.json").write_text(json.dumps(result))
    known, even, _ = made(tmp_path / "runs").verdict.serving
    assert (known.rows, even.rows) == ([], [])
    assert "Not measured: ltc, " in known.notes[-1]


def test_the_command_prints_the_tables_at_the_prices_given_and_writes_nothing(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prices = yaml.safe_load(cost.FILE.read_text())
    prices["measured"]["dollars_per_hour"] = 3600.0
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(prices))
    before = sorted(tmp_path.rglob("*"))
    assert main(["runs", "--serving", "--prices", "mine.yaml"]) == 0
    said = capsys.readouterr().out
    assert "**Serving, measured**" in said
    assert re.search(r"\| ltc .*\| +\$300\* \|", said)  # 4,000 tokens of a second of a dollar
    assert sorted(tmp_path.rglob("*")) == before
    assert main([str(tmp_path / "none"), "--serving"]) == 2
    assert main(["runs", "--serving", "--pages", "mine.yaml"]) == 2
    assert main(["runs", "--prices", "mine.yaml", "--pages", "mine.yaml"]) == 2


@given(st.integers(1, 10**9), st.integers(1, 10**6))
def test_the_break_even_context_is_the_first_at_which_the_cache_holds_more(state, per_token):
    own = serving.Held("ltc", "1m", "state", dict.fromkeys(cost.CONTEXTS, state))
    cache = serving.Held("transformer", "1m", "full", {at: at * per_token for at in cost.CONTEXTS})
    at = serving.break_even(own, cache)
    assert (at - 1) * per_token <= state < at * per_token
    window = serving.Held("transformer_window", "1m", "state", dict.fromkeys(cost.CONTEXTS, per_token))
    assert serving.break_even(own, window) == (serving.SMALLER if state < per_token else serving.NEVER)
    assert serving.break_even(own, serving.Held("transformer", "100k", "full", cache.after)) == "not measured"
