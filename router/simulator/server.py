"""The HTTP side of one worker: vLLM's routes over aiohttp's server, with replies written straight to the connection.

aiohttp parses requests and cancels a handler when its client leaves. This module writes heads, bodies and chunks itself,
because the simulated fleet shares its CPU cores with the measured router. Must never await between a token and its write.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from itertools import count

import msgspec
import xxhash
from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from router.simulator import pooling
from router.simulator.answers import Book
from router.simulator.exposition import CONTENT_TYPE, Exposition
from router.simulator.faults import BREAKING, Fault
from router.simulator.intake import UNDECODABLE, Intake, Plan, Refusal, refuse
from router.simulator.replies import GARBAGE, ChunkedSink, Sent, reset
from router.simulator.requests import (
    DetokenizeRequest,
    FaultRequest,
    MessagesRequest,
    TokenizeRequest,
    render_chat,
    render_messages,
)
from router.simulator.settings import SimulatorSettings
from router.simulator.tokenizer import Vocabulary, count_tokens, split_tokens
from router.simulator.wire import VLLM_VERSION, encode_error, encode_messages_error
from router.simulator.worker import ENGINE_DEAD, Worker

_JSON = "application/json"
_READ_BUFFER_BYTES = 1 << 20


def _encode_refusal(refusal: Refusal, path: str) -> bytes:
    """The error body in the shape of the route. A body that does not decode gets vLLM's shape on every route."""
    if path.startswith("/v1/messages") and refusal.kind != UNDECODABLE:
        return encode_messages_error(refusal.message, refusal.kind)
    return encode_error(refusal.status, refusal.message, refusal.kind, refusal.param)


_Handler = Callable[["WorkerServer", web.BaseRequest, str], Awaitable[web.StreamResponse]]


class WorkerServer:
    """One worker's socket. `start` and `stop` may alternate; each start imitates a new process with a cold cache."""

    def __init__(self, settings: SimulatorSettings, vocabulary: Vocabulary, book: Book, number: int) -> None:
        self.port = settings.base_port + number if settings.base_port else 0
        self._settings = settings
        self._vocabulary = vocabulary
        self._book = book
        self._poison = settings.poison.encode()
        self._intake = Intake(settings, vocabulary, book)
        self._numbers = count()
        self._number = number
        self._restart()

    def _restart(self) -> None:
        self.worker = Worker(self._settings, self._book, self._vocabulary.ids_of)
        self._started_s = time.time()
        self._exposition = Exposition(self._settings, self._started_s)

    async def start(self, host: str) -> None:
        """Listen. A stopped worker gets its port again and a cold cache. Raises OSError if the port is taken."""
        if self.worker.is_closed:
            self._restart()
        self._server = web.Server(
            self._answer,
            request_factory=self._make_request,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=self._settings.keepalive_s,
            read_bufsize=_READ_BUFFER_BYTES,
        )
        self._listener = await asyncio.get_running_loop().create_server(self._server, host, self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Die as on SIGKILL: the listener and every connection close at once."""
        self._crash()
        await self._server.shutdown(1.0)
        await self._listener.wait_closed()
        self.worker.close()

    def _crash(self) -> None:
        """Close the listener and every connection. The worker listens again after `stop` and `start`."""
        self._listener.close()
        for connection in self._server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    def _make_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        loop, max_bytes = asyncio.get_running_loop(), self._settings.max_body_bytes
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=max_bytes)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        request_id = request.headers.get("X-Request-Id") or self._make_id()
        path = request.path
        route = _ROUTES.get(path) or (_POOLING_ROUTES.get(path) if self._settings.serves_pooling else None)
        if path.startswith("/v1/") and not self._is_authorized(request):
            return self._reply(request, request_id, 401, b'{"error":"Unauthorized"}')
        if route is None:
            return self._reply(request, request_id, 404, b'{"detail":"Not Found"}')
        methods, handler = route
        if request.method not in methods:
            return self._reply(request, request_id, 405, b'{"detail":"Method Not Allowed"}')
        try:
            return await handler(self, request, request_id)
        except Refusal as refusal:
            return self._reply(request, request_id, refusal.status, _encode_refusal(refusal, path))
        except web.HTTPRequestEntityTooLarge:
            body = encode_error(413, "Request body too large", "BadRequestError")
            return self._reply(request, request_id, 413, body)

    def _is_authorized(self, request: web.BaseRequest) -> bool:
        key = self._settings.api_key
        return key is None or request.headers.get("Authorization") == f"Bearer {key}"

    def _make_id(self) -> str:
        return xxhash.xxh3_128_hexdigest(b"%d %d %d" % (self._number, next(self._numbers), int(self._started_s * 1e6)))

    def _head(self, request: web.BaseRequest, request_id: str, status: int, content_type: str) -> bytes:
        """A head without its framing field and without the empty line at its end."""
        close = "" if request.keep_alive else "connection: close\r\n"
        return (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nserver: uvicorn\r\n{close}"
            f"content-type: {content_type}\r\nx-request-id: {request_id}\r\n"
        ).encode("utf-8", "surrogateescape")

    def _reply(
        self, request: web.BaseRequest, request_id: str, status: int, body: bytes, content_type: str = _JSON
    ) -> web.StreamResponse:
        """Answer with a whole body. aiohttp closes the connection if the request's body is not read to its end."""
        transport = request.transport
        if transport is not None and not transport.is_closing():
            head = self._head(request, request_id, status, content_type)
            transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))
        return Sent(keep_alive=request.keep_alive)

    async def _read(self, request: web.BaseRequest) -> bytes:
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return await request.read()

    async def _serve(self, request: web.BaseRequest, request_id: str, plan: Plan) -> web.StreamResponse:
        """Run a planned request to its end. Cancellation, such as the client's departure, aborts it."""
        transport = request.transport
        if transport is None:
            return Sent(keep_alive=False)
        sink = None
        if plan.is_stream:
            head = self._head(request, request_id, 200, "text/event-stream; charset=utf-8")
            sink = ChunkedSink(transport, head + b"transfer-encoding: chunked\r\n\r\n")
        exchange = self.worker.begin(plan, sink)
        try:
            body = await exchange.done
        finally:
            self.worker.leave(exchange)
        if sink is not None:
            return Sent(keep_alive=request.keep_alive and not transport.is_closing())
        if self.worker.fault in BREAKING:
            return self._break(request, request_id, transport, body)
        return self._reply(request, request_id, 200, body)

    def _break(
        self, request: web.BaseRequest, request_id: str, transport: asyncio.Transport, body: bytes
    ) -> web.StreamResponse:
        """Answer an unstreamed request as the worker's fault says."""
        fault = self.worker.fault
        if fault is Fault.DEAD:
            refuse(500, ENGINE_DEAD, "InternalServerError")
        if fault is Fault.RESET:
            reset(transport)
        elif fault is Fault.CUT:
            transport.abort()
        elif not transport.is_closing():
            head = b"%bcontent-length: %d\r\n\r\n" % (self._head(request, request_id, 200, _JSON), len(body))
            transport.write(GARBAGE if fault is Fault.GARBAGE else head + body[: len(body) // 2])
            transport.close()
        return Sent(keep_alive=False)

    async def _admit(self, request: web.BaseRequest) -> bytes:
        """The body of a request. Under a fault, or with poison in the body, the request is refused or never served."""
        body = await self._read(request)
        if self._poison and self._poison in body:
            self._crash()
            await asyncio.get_running_loop().create_future()  # the closed connection cancels this handler
        fault = self.worker.fault
        if fault is Fault.HANG:
            await asyncio.get_running_loop().create_future()
        if fault in (Fault.ERROR, Fault.DRAIN, Fault.DEAD):
            message = "cannot schedule new futures after shutdown" if fault is Fault.DRAIN else ENGINE_DEAD
            refuse(500, message, "InternalServerError")
        return body

    async def chat(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        plan = self._intake.plan_chat(await self._admit(request), request_id, int(time.time()))
        return await self._serve(request, request_id, plan)

    async def completions(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        plan = self._intake.plan_completion(await self._admit(request), request_id, int(time.time()))
        return await self._serve(request, request_id, plan)

    async def messages(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        plan = self._intake.plan_messages(await self._admit(request), request_id)
        return await self._serve(request, request_id, plan)

    async def embeddings(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        body, dims = await self._admit(request), self._settings.embedding_dims
        plan = pooling.plan_embeddings(self._intake, body, request_id, int(time.time()), dims)
        return await self._serve(request, request_id, plan)

    async def rerank(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        return await self._serve(
            request, request_id, pooling.plan_rerank(self._intake, await self._admit(request), request_id)
        )

    async def score(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        plan = pooling.plan_score(self._intake, await self._admit(request), request_id, int(time.time()))
        return await self._serve(request, request_id, plan)

    async def count_tokens(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        asked = self._intake.decode(await self._read(request), MessagesRequest)
        self._intake.model_of(asked.model)
        tokens = count_tokens(render_messages(asked))
        body = {"input_tokens": tokens, "context_management": {"original_input_tokens": tokens}}
        return self._reply(request, request_id, 200, msgspec.json.encode(body))

    async def tokenize(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        asked = self._intake.decode(await self._read(request), TokenizeRequest)
        self._intake.model_of(asked.model)
        if asked.messages is not None:
            text = render_chat(
                asked.messages,
                bytes(asked.tools),
                add_generation_prompt=asked.add_generation_prompt,
                continue_final=asked.continue_final_message,
            )
        elif asked.prompt is not None:
            text = asked.prompt.encode("utf-8", "surrogatepass")
        else:
            refuse(400, "either prompt or messages is required")
        tokens = split_tokens(text)
        body = {
            "count": len(tokens),
            "max_model_len": self._settings.max_model_len,
            "tokens": self._vocabulary.ids_of(tokens),
            "token_strs": [token.decode("utf-8", "replace") for token in tokens] if asked.return_token_strs else None,
        }
        return self._reply(request, request_id, 200, msgspec.json.encode(body))

    async def detokenize(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        asked = self._intake.decode(await self._read(request), DetokenizeRequest)
        text = self._vocabulary.decode(asked.tokens).decode("utf-8", "replace")
        return self._reply(request, request_id, 200, msgspec.json.encode({"prompt": text}))

    async def models(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        settings = self._settings
        created_s = int(self._started_s)
        common = {"object": "model", "created": created_s, "owned_by": "vllm"}
        base = [
            {"id": name, **common, "root": settings.models[0], "parent": None, "max_model_len": settings.max_model_len}
            for name in settings.models
        ]
        adapters = [
            {"id": name, **common, "root": name, "parent": settings.models[0], "max_model_len": None}
            for name in settings.adapters
        ]
        body = msgspec.json.encode({"object": "list", "data": [*base, *adapters]})
        return self._reply(request, request_id, 200, body)

    async def health(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        return self._reply(request, request_id, 503 if self.worker.fault is Fault.DEAD else 200, b"")

    async def metrics(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        self.worker.refresh()
        return self._reply(request, request_id, 200, self._exposition.render(self.worker.engine), CONTENT_TYPE)

    async def load(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        body = b'{"server_load":%d}' % (self.worker.engine.running + self.worker.engine.waiting)
        return self._reply(request, request_id, 200, body)

    async def version(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        return self._reply(request, request_id, 200, b'{"version":"%b"}' % VLLM_VERSION.encode())

    async def reset_prefix_cache(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        self.worker.refresh()
        self.worker.engine.cache.reset()
        return self._reply(request, request_id, 200, b'{"success":true}')

    async def set_fault(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        """The simulator's own route: `{"fault": NAME}`, with `"after_events": N` to break a single stream."""
        asked = self._intake.decode(await self._read(request), FaultRequest)
        try:
            self.worker.set_fault(asked.fault, asked.after_events)
        except ValueError as error:
            refuse(400, str(error), param="after_events")
        return self._reply(request, request_id, 200, msgspec.json.encode(asked))


_GET, _POST = frozenset(("GET", "HEAD")), frozenset(("POST",))
_ROUTES: dict[str, tuple[frozenset[str], _Handler]] = {
    "/v1/chat/completions": (_POST, WorkerServer.chat),
    "/v1/completions": (_POST, WorkerServer.completions),
    "/v1/messages": (_POST, WorkerServer.messages),
    "/v1/messages/count_tokens": (_POST, WorkerServer.count_tokens),
    "/v1/models": (_GET, WorkerServer.models),
    "/tokenize": (_POST, WorkerServer.tokenize),
    "/detokenize": (_POST, WorkerServer.detokenize),
    "/health": (_GET, WorkerServer.health),
    "/ping": (_GET | _POST, WorkerServer.health),
    "/load": (_GET, WorkerServer.load),
    "/version": (_GET, WorkerServer.version),
    "/metrics": (_GET, WorkerServer.metrics),
    "/reset_prefix_cache": (_POST, WorkerServer.reset_prefix_cache),
    "/simulator/fault": (_POST, WorkerServer.set_fault),
}
_POOLING_ROUTES: dict[str, tuple[frozenset[str], _Handler]] = {
    "/v1/embeddings": (_POST, WorkerServer.embeddings),
    "/v1/rerank": (_POST, WorkerServer.rerank),
    "/rerank": (_POST, WorkerServer.rerank),
    "/v1/score": (_POST, WorkerServer.score),
    "/score": (_POST, WorkerServer.score),
}
