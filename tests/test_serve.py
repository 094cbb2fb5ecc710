"""The server of a trained run: streams, sessions and their snapshots, limits, and requests that nobody should send."""

import json
import pickle
import random
import shutil
from pathlib import Path

import anyio
import pytest
import safetensors.torch

import harness
import recorded_run
from harness.config.errors import ConfigError, MachineError, RecordError
from harness.generation.library import Past
from harness.serve import __main__ as command
from harness.serve.sessions import Limits, Sessions, serialised
from test_library import Malicious

pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from starlette.requests import ClientDisconnect
from starlette.testclient import TestClient

from harness.serve.app import application

MODELS = ("gru", "transformer")
"""A constant state, and one that grows and is cut to the training length."""
ASKED = {"prompt": "the quick brown fox", "max_new_tokens": 20, "temperature": 0.9, "top_k": 50, "top_p": 0.9}
ASKED |= {"seed": 3}
SCOPE = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "query_string": b""}
SCOPE |= {"client": ("127.0.0.1", 1)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{model: its run}, each trained when it is first asked for."""
    made = {}

    def run(model: str) -> harness.TrainedModel:
        if model not in made:
            home = tmp_path_factory.mktemp(model)
            made[model] = harness.load(recorded_run.make(home, f"model={model}", "kernel=reference"))
        return made[model]

    return run


@pytest.fixture
def serve(runs, tmp_path):
    """Clients of servers of a model with a folder; all are closed at the end."""
    opened = []

    def client(model: str = "gru", **limits: int) -> TestClient:
        made = TestClient(application(runs(model), Limits(**limits), tmp_path), base_url="http://127.0.0.1")
        opened.append(made.__enter__())
        return made

    yield client
    for made in opened:
        made.__exit__(None, None, None)


def lines(answer) -> list[dict]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def said(client: TestClient, **asked) -> list[dict]:
    return lines(client.post("/generate", json=ASKED | asked))


def opened(client: TestClient) -> str:
    answer = client.post("/sessions")
    assert answer.status_code == 201
    return answer.json()["session"]


@pytest.mark.parametrize("model", MODELS)
def test_a_stream_is_what_the_library_generates(model, runs, serve):
    client = serve(model)
    *pieces, end = said(client)
    settings = {key: value for key, value in ASKED.items() if key != "prompt"}
    assert [piece["text"] for piece in pieces] == list(runs(model).generate(ASKED["prompt"], **settings))
    *tokens, _ = said(client, prompt=[*b"the quick brown fox"])
    assert [token["token"] for token in tokens] == list(runs(model).generate([*b"the quick brown fox"], **settings))
    assert end == {"done": True, "tokens": 20, "read": len(ASKED["prompt"]) + 19}
    health = client.get("/health").json()
    assert (health["status"], health["model"], health["sessions"], health["streams"]) == ("ok", model, 0, 0)


@pytest.mark.parametrize("model", MODELS)
def test_a_session_goes_on_and_goes_on_equally_after_it_was_written_and_read_elsewhere(model, runs, serve):
    client, trained = serve(model), runs(model)
    session = opened(client)
    long = "over the lazy dog. " * 8  # beyond the window of a state that is cut
    first = said(client, prompt=long, session=session)
    assert client.post(f"/sessions/{session}/snapshot").status_code == 200
    held = client.get(f"/sessions/{session}").json()
    assert held["read"] == first[-1]["read"] == len(long) + 19
    second = said(client, prompt=" and then", session=session, seed=8)
    settings = {key: value for key, value in ASKED.items() if key not in ("prompt", "seed")}
    before = trained.generate(long, seed=3, **settings)
    assert "".join(before) == "".join(line["text"] for line in first[:-1])
    after = trained.generate(" and then", seed=8, after=before.past, **settings)
    assert [line["text"] for line in second[:-1]] == list(after)

    for other in (client, serve(model)):  # the same server, and one that was started anew
        assert other.post(f"/sessions/{session}/restore").json() == held
        assert said(other, prompt=" and then", session=session, seed=8) == second
    assert client.delete(f"/sessions/{session}").status_code == 204
    assert client.post(f"/sessions/{session}/restore").status_code == 404
    assert client.get(f"/sessions/{session}").status_code == 404


WRONG = {
    "prompt": (None, 1, {}, [], "", ["a"], [256], [-1], [1.0], [True], [2**70], [[1]], "\ud800"),
    "max_new_tokens": (-1, 1.5, "1", None, True, 2**31, 10**30, []),
    "temperature": (-0.1, "hot", 1e9, None, [], float("nan"), float("inf"), -(10**400)),
    "top_k": (0, -1, 0.5, "all", True, [], 2**40),
    "top_p": (0, -1, 1.1, "x", None, float("nan")),
    "seed": (-1, 2**32, 0.1, None, "0", 10**500),
    "session": (1, "", "../../etc/passwd", "0" * 31, "0" * 33, "A" * 32, "0" * 32, {}, "\u0000", "é" * 32),
    "extra": (1,),
}
ROUTES = ("/generate", "/sessions", "/health")
PATHS = (*ROUTES, "/", "/generate/x", "/sessions/../../etc/snapshot", f"/sessions/{'0' * 32}", "/sessions/a/restore")
TYPES = (*["application/json"] * 4, "application/json; charset=utf-8", "text/plain", "")


def malformed(rng: random.Random) -> tuple[str, str, bytes, str]:
    """A request that is wrong in one way or more: method, path, body and type of the body."""
    method, path, kind = "POST", "/generate", rng.choice(TYPES)
    body = bytearray(json.dumps(ASKED).encode())
    match rng.randrange(6):
        case 0:
            key = rng.choice(list(WRONG))
            body = json.dumps(ASKED | {key: rng.choice(WRONG[key])}).encode()
        case 1:
            whole = bytes(body[: rng.randrange(len(body))])
            body = rng.choice([whole, b"[" * 3000, b"[1]", b"null", b'{"a":' * 700, b'"x"', bytes(body) * 2])
        case 2:
            body = rng.randbytes(rng.randrange(200))
        case 3:
            body[rng.randrange(len(body))] = rng.choice(b"\x00\xff\x80")  # in no JSON
        case 4:
            body = json.dumps(ASKED | {"prompt": "x" * rng.choice([2000, 5000])}).encode()
        case 5:
            method, path = rng.choice(["GET", "POST", "DELETE", "PUT"]), rng.choice(PATHS)
            method = "PUT" if path in ROUTES else method
    return method, path, bytes(body), kind


async def answered(app, method: str, path: str, body: bytes, kind: str) -> tuple[int, dict]:
    """The status and the content of an answer, without a client that would mend the request."""
    given = [{"type": "http.request", "body": body[:7], "more_body": True}, {"type": "http.request", "body": body[7:]}]
    sent: list[dict] = []
    headers = [(b"host", b"localhost"), (b"content-type", kind.encode())]

    async def receive():
        return given.pop(0) if given else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await app(SCOPE | {"method": method, "path": path, "headers": headers}, receive, send)
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent))


def test_a_thousand_malformed_requests_are_refused_with_a_reason_and_leave_nothing(serve, tmp_path):
    client, rng = serve(body_bytes=4000, prompt_tokens=1000), random.Random(0)
    counts: dict[int, int] = {}

    async def ask_all() -> None:
        for _ in range(1000):
            request = malformed(rng)
            status, content = await answered(client.app, *request)
            assert 400 <= status < 500, (request, status, content)
            assert content["error"]
            counts[status] = counts.get(status, 0) + 1

    anyio.run(ask_all)
    assert counts.keys() >= {400, 404, 405, 413, 415}
    assert counts[400] > 300
    health = client.get("/health").json()
    assert (health["sessions"], health["streams"], list(tmp_path.iterdir())) == (0, 0, [])
    assert said(client)[-1]["tokens"] == 20


def test_limits_hold(serve):
    client = serve(prompt_tokens=30, new_tokens=25, sessions=2, snapshots=1, body_bytes=300)
    reasons = {
        "31 prompt_tokens": {"prompt": "x" * 31},
        "26 new_tokens": {"max_new_tokens": 26},
        "The body has more than 300 bytes": {"prompt": "x" * 300},
    }
    for reason, asked in reasons.items():
        answer = client.post("/generate", json=ASKED | asked)
        assert (answer.status_code in (400, 413), reason in answer.json()["error"]) == (True, True)
    first, second = opened(client), opened(client)
    assert client.post("/sessions").status_code == 429
    assert client.post(f"/sessions/{first}/snapshot").status_code == 409  # nothing was read
    for session, status in ((first, 200), (first, 200), (second, 429)):
        said(client, session=session)
        assert client.post(f"/sessions/{session}/snapshot").status_code == status
    held = client.get("/health").json()["state_bytes"]
    assert held == 2 * client.get(f"/sessions/{first}").json()["state_bytes"] > 0

    tight = serve(state_bytes=held // 2, streams=1)
    said(tight, session=opened(tight))
    for refused in (tight.post("/sessions"), tight.post("/generate", json=ASKED)):
        assert (refused.status_code, "bytes" in refused.json()["error"]) == (429, True)


def test_one_request_works_on_a_session_at_a_time_and_one_that_goes_away_leaves_it_usable(runs):
    app = application(runs("gru"), Limits(streams=1))
    client = TestClient(app, base_url="http://127.0.0.1")
    session, seen = opened(client), []
    body = json.dumps(ASKED | {"session": session}).encode()

    async def receive():
        return {"type": "http.request", "body": body}

    async def send(message):
        if message["type"] == "http.response.body":
            answers = [client.get(f"/sessions/{session}"), client.post("/generate", json=ASKED)]
            seen.append([answer.status_code for answer in answers])
            raise OSError("the connection is gone")

    scope = SCOPE | {"method": "POST", "path": "/generate"}
    scope["headers"] = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    with pytest.raises(ClientDisconnect):
        anyio.run(app, scope, receive, send)
    assert seen == [[409, 429]]
    read = client.get(f"/sessions/{session}").json()["read"]
    assert len(ASKED["prompt"]) <= read < len(ASKED["prompt"]) + 19
    assert said(client, session=session, prompt="")[-1]["read"] == read + 20


def spoilt(folder: Path, name: str, past: Past, trained: harness.TrainedModel) -> dict[str, bytes]:
    """Files that are no snapshots of this model."""
    model = Sessions(trained, Limits())._model
    whole = serialised(past, model)
    return {
        "half": whole[: len(whole) // 2],
        "pickle": pickle.dumps(Malicious(folder / "touched")),
        "another model": serialised(past, "another"),
        "another size": serialised(Past([[past.state[0][0]]], past.read, past.last), model),
        "another length": serialised(Past(past.state, -5, past.last), model),
        "no token": serialised(Past(past.state, past.read, 256), model),
        "nothing said": safetensors.torch.save(safetensors.torch.load(whole)),
    }


def test_a_snapshot_that_was_tampered_with_is_refused_and_runs_nothing(runs, serve, tmp_path):
    client = serve()
    session = opened(client)
    before = said(client, session=session)
    generation = runs("gru").generate("a", 3)
    list(generation)
    for case, data in spoilt(tmp_path, session, generation.past, runs("gru")).items():
        (tmp_path / f"{session}.safetensors").write_bytes(data)
        for client in (client, serve()):  # noqa: B020  (one that holds the session, and one that does not)
            answer = client.post(f"/sessions/{session}/restore")
            assert (answer.status_code, "cannot be used" in answer.json()["error"]) == (409, True), case
            assert client.get("/health").json()["sessions"] in (0, 1)
    assert not (tmp_path / "touched").exists()
    assert before


def test_the_command_binds_to_this_machine_alone_and_says_what_is_wrong(runs, tmp_path, monkeypatch, capsys):
    uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    path, served = runs("gru").path, {}
    monkeypatch.setattr(uvicorn, "run", lambda app, **options: served.update(options, app=app))
    command.main([f"run={path}", f"folder={tmp_path / 'kept'}", "sessions=5"])
    assert (served["host"], served["port"]) == ("127.0.0.1", 8000)
    client = TestClient(served["app"], base_url="http://127.0.0.1")
    assert client.get("/health").json()["limits"]["sessions"] == 5
    assert client.get("/health", headers={"host": "attacker.example"}).status_code == 400
    assert "whoever" not in capsys.readouterr().out
    command.main([f"run={path}", "host=0.0.0.0"])
    assert "to whoever reaches it" in capsys.readouterr().out
    for wrong in ([], ["run=x", "port=70000"], ["run=x", "sessions=-1"], ["run=x", "sesions=1"], ["run=x", "host="]):
        with pytest.raises(ConfigError):
            command.main(wrong)
    shutil.copy(path / "config.json", tmp_path)
    with pytest.raises(RecordError):
        command.main([f"run={tmp_path}"])
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"pip install 'liquidbench\[serve\]'"):
        command.main([f"run={path}"])
