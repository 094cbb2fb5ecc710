"""The server's interface: what it answers to which request, as a Starlette application.

POST /generate streams lines of JSON; sessions are opened, read, closed, written and restored under /sessions. Whatever
is wrong with a request is answered with a status of 4xx and the reason: what was wrong, what was expected, the remedy.
"""

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from harness.config.errors import CheckpointError, UserError
from harness.config.ranges import Seed
from harness.generation.library import Generation, TrainedModel
from harness.serve.sessions import Limits, RefusedError, Session, Sessions

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
Id = Annotated[int, Field(ge=0, lt=2**31)]


class Asked(BaseModel):
    """The body of POST /generate: the arguments of `TrainedModel.generate`, and the session to go on from."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    prompt: str | list[Id]
    max_new_tokens: Id = 256
    temperature: float = 1.0
    top_k: Id | None = None
    top_p: float = 1.0
    seed: Seed = 0
    session: str | None = None


def application(
    trained: TrainedModel, limits: Limits | None = None, folder: Path | None = None, hosts: tuple[str, ...] = LOOPBACK
) -> Starlette:
    """The server of one model. folder: of snapshots. hosts: names by which it may be called ("*" for any).

    A page of the web that lets its own name lead to this machine is turned away by the names.
    """
    server = Server(Sessions(trained, limits or Limits(), folder))
    one = "/sessions/{session}"
    return Starlette(
        routes=[
            Route("/health", server.health),
            Route("/generate", server.generate, methods=["POST"]),
            Route("/sessions", server.open, methods=["POST"]),
            Route(one, server.show),
            Route(one, server.close, methods=["DELETE"]),
            Route(f"{one}/snapshot", server.snapshot, methods=["POST"]),
            Route(f"{one}/restore", server.restore, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))],
        exception_handlers={UserError: _refused, HTTPException: _unknown},
    )


class Server:
    """The handlers. One token is computed at a time, of each generation in turn."""

    def __init__(self, sessions: Sessions):
        self.sessions, self.limits = sessions, sessions.limits
        self._streams = 0
        self._turn = CapacityLimiter(1)

    async def health(self, request: Request) -> Response:
        trained, sessions = self.sessions.trained, self.sessions
        held = {"sessions": len(sessions), "state_bytes": sessions.state_bytes, "streams": self._streams}
        return JSONResponse({"status": "ok", "model": trained.model.spec.name} | held | {"limits": asdict(self.limits)})

    async def generate(self, request: Request) -> Response:
        """A line for each piece of text ({"text"}), or token where the prompt is ids ({"token"}), then {"done"}."""
        asked = _asked(await _body(request, self.limits.body_bytes))
        self._check(asked)
        session = None if asked.session is None else self.sessions.claim(asked.session)
        self._streams += 1
        try:
            generation = await self._in_turn(
                partial(
                    self.sessions.trained.generate,
                    **asked.model_dump(exclude={"session"}),
                    after=None if session is None else session.past,
                )
            )
        except BaseException:
            self._release(session, None)
            raise
        return Stream(self._lines(generation), partial(self._release, session, generation))

    async def open(self, request: Request) -> Response:
        return JSONResponse({"session": self.sessions.open()}, 201)

    async def show(self, request: Request) -> Response:
        with self.sessions.claimed(_id(request)) as session:
            return _shown(request, session)

    async def close(self, request: Request) -> Response:
        self.sessions.close(_id(request))
        return Response(status_code=204)

    async def snapshot(self, request: Request) -> Response:
        with self.sessions.claimed(_id(request)) as session:
            written = await to_thread.run_sync(self.sessions.snapshot, _id(request), session)
        return JSONResponse({"session": _id(request), "bytes": written})

    async def restore(self, request: Request) -> Response:
        return _shown(request, self.sessions.restore(_id(request)))

    def _check(self, asked: Asked) -> None:
        length = len(asked.prompt.encode() if isinstance(asked.prompt, str) else asked.prompt)
        for what, value, most in (
            ("prompt_tokens", length, self.limits.prompt_tokens),
            ("new_tokens", asked.max_new_tokens, self.limits.new_tokens),
        ):
            if value > most:
                raise RefusedError(
                    400, f"{value} {what} were asked for.", f"at most {most}.", "ask for fewer, in several requests."
                )
        self.sessions.check_memory()
        if self._streams >= self.limits.streams:
            raise RefusedError(
                429, f"{self._streams} generations are under way.", f"fewer than {self.limits.streams}.", "ask later."
            )

    async def _lines(self, generation: Generation) -> AsyncIterator[str]:
        while (piece := await self._in_turn(partial(next, generation, None))) is not None:
            yield _line({"text" if isinstance(piece, str) else "token": piece})
        yield _line({"done": True, "tokens": len(generation.tokens), "read": generation.past.read})

    async def _in_turn(self, call: Callable[[], Any]) -> Any:
        return await to_thread.run_sync(call, limiter=self._turn)

    def _release(self, session: Session | None, generation: Generation | None) -> None:
        self._streams -= 1
        if session is not None:
            session.busy = False
            if generation is not None:
                session.keep(generation.past)


class Stream(StreamingResponse):
    """Lines of JSON. release: called when they have ended, or whoever asked has gone, the first line read or not."""

    def __init__(self, lines: AsyncIterator[str], release: Callable[[], None]):
        super().__init__(lines, media_type="application/x-ndjson")
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._release()


def _line(content: dict) -> str:
    return json.dumps(content) + "\n"


def _id(request: Request) -> str:
    return request.path_params["session"]


def _shown(request: Request, session: Session) -> Response:
    read = 0 if session.past is None else session.past.read
    return JSONResponse({"session": _id(request), "read": read, "state_bytes": session.state_bytes})


async def _body(request: Request, most: int) -> bytes:
    """The body, of which no more than `most` bytes are ever held."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RefusedError(415, "The body is no JSON.", "content-type: application/json.", "set this header.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise RefusedError(
                413, f"The body has more than {most} bytes.", "fewer.", "send the prompt in several requests."
            )
    return bytes(body)


def _asked(body: bytes) -> Asked:
    try:
        return Asked.model_validate_json(body)
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}"
            for one in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise RefusedError(
            400,
            f"The request cannot be read ({'; '.join(wrong[:3])}).",
            f"a JSON object of {', '.join(Asked.model_fields)}.",
            "correct these values.",
        ) from error


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, UserError)
    status = error.status if isinstance(error, RefusedError) else 409 if isinstance(error, CheckpointError) else 400
    return JSONResponse({"error": error.what, "expected": error.expected, "remedy": error.remedy}, status)


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
