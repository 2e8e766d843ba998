"""The paths of the server: OpenAI's, /health, /metrics, and what the page asks for.

    request -> guard (key, origin) -> openai_form.read_… -> prompts as ids -> Scheduler -> pieces -> JSON or a stream

The event loop does nothing that takes long: one thread encodes prompts, and the scheduler's thread owns the models. A
client that hangs up is noticed while it waits as well as while it reads, and its place becomes free.

Try: let `guard` pass any Origin; tests/test_serve.py (test_refuses_what_other_sites_send) fails, and every site that
one has open could use the model.
"""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llama.generation import encode_prompt
from llama.heads import require_lm_head
from llama.serve import batch
from llama.serve import openai_form as form
from llama.serve.batch import Piece
from llama.serve.metrics import CONTENT_TYPE, Metrics
from llama.serve.models import Models, Served, text_embedding
from llama.serve.openai_form import APIError, ChatChoice, TextChoice, Wish
from llama.serve.page_api import page_files, page_paths
from llama.serve.scheduler import QueueFull, Scheduler

MOST_BYTES = 4 * 2**20                                              # of a body
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass
class Server:
    """What the paths work with.

    defaults  what a request that says nothing gets
    key       the bearer key that requests must bring; "" for none
    local     reached from this machine alone, so that names other than its own are a trick
    """

    models: Models
    scheduler: Scheduler
    defaults: Wish = field(default_factory=Wish)
    key: str = ""
    local: bool = True
    metrics: Metrics = field(default_factory=Metrics)
    started: int = field(default_factory=lambda: int(time.time()))
    on_close: list[Callable[[], None]] = field(default_factory=list)
    encoder: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "encoder"))

    def __post_init__(self) -> None:
        self.models.on_forgotten = self.scheduler.forget

    async def served(self, name: str) -> Served:
        """The model of this name, loaded if need be."""
        if found := self.models.loaded(name):
            return found
        if name and name not in self.models.names():
            raise APIError(f"the model {name!r:.80} is not here; GET /v1/models lists those that are", status=404,
                           param="model", code="model_not_found")
        return await self.call(self.models.get, name)

    async def call(self, f: Callable[..., Any], *arguments: Any) -> Any:
        """`f` in the thread that owns the models."""
        return await asyncio.wrap_future(self.scheduler.call(lambda: f(*arguments)))

    async def encode(self, f: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        """`f` in the thread that makes ids of texts."""
        return await asyncio.get_running_loop().run_in_executor(self.encoder, lambda: f(*arguments, **more))

    def close(self) -> None:
        for f in self.on_close:
            f()
        self.scheduler.close()
        self.encoder.shutdown(cancel_futures=True)


class Pieces:
    """Requests under way for one caller; an async iterator of (which prompt, piece) that ends when all texts have.

    Raises QueueFull, and lets none of them wait, if not all may. Whoever made it cancels it, however it ends.
    """

    def __init__(self, server: Server, served: Served, wish: Wish, prompts: list[list[int]], *, chat: bool):
        self.server, self.start = server, time.perf_counter()
        self._queue: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def send(number: int) -> Callable[[Piece | Exception], None]:
            def put(piece: Piece | Exception) -> None:
                try:
                    loop.call_soon_threadsafe(self._queue.put_nowait, (number, piece))
                except RuntimeError:                                # the server has ended
                    pass
            return put

        require_lm_head(served.model)
        if len(prompts) > (most := server.scheduler.queue):         # 429 would make clients try again for ever
            raise APIError(f"these are {len(prompts)} prompts, and at most {most} may wait; send fewer at once",
                           param="prompt")
        chat_format = served.chat_format if chat else None
        self.requests = [batch.Request(
            served.model, prompt, send(i), sampling=wish.sampling, max_new_tokens=wish.max_new_tokens, n=wish.n,
            seed=(wish.seed + i * wish.n) % 2**32, stop=wish.stop, chat_format=chat_format, ignore_eos=wish.ignore_eos,
            top_logprobs=wish.top_logprobs) for i, prompt in enumerate(prompts)]
        self._left = wish.n * len(prompts)

        try:
            for request in self.requests:
                server.scheduler.submit(request)
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        for request in self.requests:
            self.server.scheduler.cancel(request)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        first = True
        while self._left:
            number, piece = await self._queue.get()
            if isinstance(piece, Exception):
                raise piece
            if first:
                self.server.metrics.first_token.observe(time.perf_counter() - self.start)
                first = False
            self._left -= bool(piece.finish_reason)
            yield number, piece
        self.server.metrics.whole.observe(time.perf_counter() - self.start)


def build_app(server: Server) -> FastAPI:
    """All paths. The scheduler runs as long as the app does."""
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if not server.scheduler.is_alive():
            server.scheduler.start()
        yield
        server.close()

    app = FastAPI(title="Llama, by hand", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.server = server
    app.add_middleware(Counted, metrics=server.metrics)
    app.include_router(openai_paths(server), dependencies=[Depends(guard)])
    app.include_router(page_paths(server, read_json), dependencies=[Depends(guard)])
    app.include_router(page_files())

    @app.api_route("/health", methods=["GET", "HEAD"])              # monitors ask by either
    async def health() -> Response:
        alive = server.scheduler.is_alive()
        return JSONResponse({"status": "ok" if alive else "the scheduler has ended"}, 200 if alive else 503)

    for kind, answer in ((APIError, _api_error), (QueueFull, _queue_full), (HTTPException, _http_error),
                         (RequestValidationError, _query_error), (ValueError, _value_error), (Exception, _fault)):
        app.add_exception_handler(kind, answer)
    return app


class Counted:
    """Middleware that counts answers by path and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.answered(getattr(scope.get("route"), "path", "other"), message["status"])
            await send(message)
        await self.app(scope, receive, counting)


class Stream(StreamingResponse):
    """Events as they come; whatever ends it, also a client that hangs up before the first, ends what is behind it."""

    def __init__(self, events: AsyncIterator[str], pieces: Pieces):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self.pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.pieces.cancel()


# ---- who may ask -----------------------------------------------------------------------------------------------------


def guard(request: Request) -> None:
    """Refuse requests without the key, and those that a site which somebody has open makes a browser send."""
    server: Server = request.app.state.server
    if server.local and request.url.hostname not in LOOPBACK:
        raise APIError(f"the server answers at {', '.join(LOOPBACK)} alone, not at {request.url.hostname!r:.80}",
                       status=403, code="wrong_host")
    origin = request.headers.get("origin")
    if origin and origin.rpartition("://")[2] != request.url.netloc:
        raise APIError(f"pages of {origin!r:.80} may not use this server", status=403, code="wrong_origin")
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if server.key and not (scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), server.key.encode())):
        raise APIError("the key is missing or wrong; give it as the header «Authorization: Bearer KEY»", status=401,
                       code="invalid_api_key")


async def read_json(request: Request) -> Any:
    """The body, which must be JSON, and called so: a form of another site could send any other kind."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise APIError("the body must be JSON, with the header «Content-Type: application/json»", status=415)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise APIError(f"the body is larger than {MOST_BYTES:,} bytes; send less", status=413)
    try:
        return json.loads(bytes(body))
    except (ValueError, RecursionError) as error:
        raise APIError(f"the body is no JSON: {error}") from None


async def unless_gone(request: Request, work: Awaitable[Response]) -> Response:
    """What comes of `work`, which is cancelled when the client hangs up."""
    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else Response(status_code=499)                # which nobody reads
    finally:                                                        # also where the server itself ends
        watching.cancel()
        working.cancel()


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def _api_error(request: Request, error: APIError) -> Response:
    return JSONResponse(error.body, error.status)


def _queue_full(request: Request, error: QueueFull) -> Response:
    return JSONResponse(_as_api_error(error).body, 429, headers={"Retry-After": "1"})


def _http_error(request: Request, error: HTTPException) -> Response:
    what = "there is no such path" if error.status_code == 404 else str(error.detail)
    return _api_error(request, APIError(f"{request.method} {request.url.path}: {what}", status=error.status_code))


def _query_error(request: Request, error: RequestValidationError) -> Response:
    name = str(error.errors()[0]["loc"][-1])
    return _api_error(request, APIError(f"{name} in {request.url.query!r:.80} is not of the kind that it must be",
                                        param=name))


def _value_error(request: Request, error: ValueError) -> Response:
    return _api_error(request, _as_api_error(error))


def _fault(request: Request, error: Exception) -> Response:
    return _api_error(request, _as_api_error(error))


def _as_api_error(error: Exception) -> APIError:
    if isinstance(error, APIError):
        return error
    if isinstance(error, QueueFull):
        return APIError(str(error), status=429, kind="rate_limit_error", code="rate_limit_exceeded")
    if isinstance(error, ValueError):
        return APIError(str(error))
    return APIError(f"the server failed on this request: {error}", status=500, kind="server_error")


# ---- OpenAI's paths --------------------------------------------------------------------------------------------------


def openai_paths(server: Server) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models")
    async def models() -> Response:
        return JSONResponse(form.listed(server.models.names(), server.started))

    @router.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        if name not in server.models.names():
            raise APIError(f"the model {name!r:.80} is not here", status=404, code="model_not_found")
        return JSONResponse(form.described(name, server.started))

    @router.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        asked = form.read_chat(await read_json(request), server.defaults)
        served = await server.served(asked.wish.model)
        ids = await server.encode(chat_prompt, served, asked.messages, asked.tools)

        def choice(index: int, _: int) -> ChatChoice:
            return ChatChoice(index, served.model.tokenizer, tools=asked.tools,
                              logprobs=asked.wish.top_logprobs is not None)
        return await _answer(server, request, served, asked.wish, [ids], choice, kind="chat")

    @router.post("/v1/completions")
    async def completions(request: Request) -> Response:
        asked = form.read_completion(await read_json(request), server.defaults)
        served = await server.served(asked.wish.model)
        tokenizer = served.model.tokenizer
        ids = [await server.encode(encode_prompt, tokenizer, each) if isinstance(each, str) else each
               for each in asked.prompts]

        def choice(index: int, prompt: int) -> TextChoice:
            given = asked.prompts[prompt] if asked.echo else ""
            return TextChoice(index, tokenizer, echo=given if isinstance(given, str) else tokenizer.decode(given),
                              logprobs=asked.wish.top_logprobs is not None)
        return await _answer(server, request, served, asked.wish, ids, choice, kind="text")

    @router.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        asked = form.read_embedding(await read_json(request))
        served = await server.served(asked.model)

        async def all_texts() -> Response:
            rows, tokens = [], 0
            for i, text in enumerate(asked.inputs):                 # one at a time: others write between them
                ids = text if isinstance(text, list) else await server.encode(
                    encode_prompt, served.model.tokenizer, text)
                vector = await server.call(text_embedding, served.model, ids)
                rows.append({"object": "embedding", "index": i,
                             "embedding": form.embedding(vector, as_base64=asked.base64)})
                tokens += len(ids)
            return JSONResponse({"object": "list", "data": rows, "model": served.name,
                                 "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
        return await unless_gone(request, all_texts())

    @router.get("/metrics")
    async def metrics() -> Response:
        s = server.scheduler
        return Response(server.metrics.text([
            ("llama_prompt_tokens_total", "counter", "Tokens of prompts, padding included.", s.tally.read),
            ("llama_generated_tokens_total", "counter", "Tokens that were written.", s.tally.generated),
            ("llama_steps_total", "counter", "Steps of the scheduler.", s.steps),
            ("llama_busy_seconds_total", "counter", "Time that the scheduler worked.", s.seconds),
            ("llama_refused_total", "counter", "Requests refused because the queue was full.", s.refused),
            ("llama_running", "gauge", "Texts that are being written.", s.running),
            ("llama_waiting", "gauge", "Requests that wait.", s.waiting),
        ]), media_type=CONTENT_TYPE)

    return router


def chat_prompt(served: Served, messages: list[form.JSON], tools: list[form.JSON]) -> list[int]:
    """The ids of a chat up to the answer. Raises APIError where the chat format leaves the tools out."""
    def encode(**given: Any) -> list[int]:
        return served.chat_format.encode(messages, served.model.tokenizer, reply=True, **given)[0]

    ids = encode(**({"tools": tools} if tools else {}))
    if tools and ids == encode():
        raise APIError(f"the chat format of {served.name} leaves tools out, so the model would not see them; ask "
                       "without them, or take a model that was trained on them", param="tools")
    return ids


async def _answer(server: Server, request: Request, served: Served, wish: Wish, prompts: list[list[int]],
                  choice: Callable[[int, int], ChatChoice | TextChoice], *, kind: str) -> Response:
    """Run the prompts, and answer with all texts at their end, or with a stream."""
    choices = [choice(i, i // wish.n) for i in range(len(prompts) * wish.n)]
    pieces = Pieces(server, served, wish, prompts, chat=kind == "chat")     # under way from here on
    whole, part, prefix = {"chat": ("chat.completion", "chat.completion.chunk", "chatcmpl"),
                           "text": ("text_completion", "text_completion", "cmpl")}[kind]
    id, read = form.new_id(prefix), sum(map(len, prompts))

    async def at_the_end() -> Response:
        async for prompt, piece in pieces:
            choices[prompt * wish.n + piece.index].push(piece)
        return JSONResponse(form.envelope(id, whole, served.name, [each.whole() for each in choices],
                                          usage=form.usage(read, sum(each.tokens for each in choices))))

    async def events() -> AsyncIterator[str]:
        def event(chunks: list[Any], **more: Any) -> str:
            return _event(form.envelope(id, part, served.name, chunks, **more))

        try:
            for each in choices:
                if (chunk := each.first()) is not None:
                    yield event([chunk])
            async for prompt, piece in pieces:
                for chunk in choices[prompt * wish.n + piece.index].push(piece):
                    yield event([chunk])
            if wish.include_usage:
                yield event([], usage=form.usage(read, sum(each.tokens for each in choices)))
            yield "data: [DONE]\n\n"
        except Exception as error:                                  # the status is sent already
            yield _event(_as_api_error(error).body)

    if wish.stream:
        return Stream(events(), pieces)
    try:
        return await unless_gone(request, at_the_end())
    finally:
        pieces.cancel()


def _event(body: Any) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
