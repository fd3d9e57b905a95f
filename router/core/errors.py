"""All errors that a client may see, in one tree.

    RouterError
    ├── ClientError                the request is wrong, and will stay wrong
    │   ├── InvalidJson            400  invalid_json
    │   ├── InvalidRequest         400  invalid_request_error
    │   │   ├── ContextTooLong     400  context_length_exceeded: the prompt cannot fit the model's window
    │   │   ├── SessionFull        400  session_full: its log has reached its longest length
    │   │   ├── StorageFull        400  storage_full: the tenant has stored its most bytes
    │   │   └── MalformedRequest   400  invalid_request_error: not HTTP, so the connection is closed
    │   ├── InvalidApiKey          401  invalid_api_key
    │   ├── ModelNotFound          404  model_not_found, also where the key may not use it
    │   ├── PreviousResponseNotFound 400 previous_response_not_found
    │   ├── RouteNotFound          404  not_found
    │   ├── SessionNotFound        404  not_found: absent, or another tenant's
    │   ├── MethodNotAllowed       405  method_not_allowed
    │   ├── BodyTimeout            408  request_timeout
    │   ├── SessionBusy            409  session_busy: another turn has not ended
    │   │   └── ConversationLocked 400  conversation_locked: another turn has not ended, in the words of the Conversations API
    │   ├── RequestTooLarge        413  request_too_large
    │   ├── UnsupportedEncoding    415  unsupported_encoding
    │   ├── HostNotAllowed         421  host_not_allowed
    │   ├── HeadersTooLarge        431  headers_too_large
    │   └── TenantLimited          429  the tenant's own limit: retry after ``retry_after_s``
    │       ├── RateLimited             rate_limit_exceeded
    │       │   └── ConnectionsLimited  rate_limit_exceeded: too many connections, and this one is closed
    │       └── BudgetExceeded          budget_exceeded
    ├── SessionCorrupt             500  session_corrupt: its stored data cannot be read; no other session is affected
    ├── WorkerError                502  worker_error: every attempt failed
    │   ├── PoisonRequest                     worker_error: workers died while they served it, one after another
    │   └── WorkerTimeout          504  worker_timeout
    └── Unavailable                503  ours, for now: retry after ``retry_after_s``
        ├── NoWorkerAvailable           no_worker_available
        ├── ModelUnavailable            model_unavailable
        ├── Overloaded                  overloaded
        │   └── WorkersBusy             overloaded: the workers answered that they are busy
        ├── StateUnavailable            state_unavailable: the session store cannot be reached
        └── Draining                    draining

The class says whose fault an error is. A message never holds a worker's URL, a worker's 5xx body or a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class RouterError(Exception):
    """``status``: HTTP status. ``code``: one of the closed set of interface names. ``retryable``: a retry may help; the class
    has the default, and a raised error may differ."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    kind: ClassVar[str] = "server_error"
    retryable: bool = False
    is_counted: bool = False
    """The request's record has counted it among the requests."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        if retryable is not None:
            self.retryable = retryable


class ClientError(RouterError):
    status, code, kind = 400, "invalid_request_error", "invalid_request_error"


class InvalidJson(ClientError):
    code = "invalid_json"


class InvalidRequest(ClientError):
    pass


class ContextTooLong(InvalidRequest):
    """Clients that read its code shorten the conversation and try again."""

    code = "context_length_exceeded"


class SessionFull(InvalidRequest):
    code = "session_full"


class StorageFull(InvalidRequest):
    code = "storage_full"


class MalformedRequest(InvalidRequest):
    pass


class InvalidApiKey(ClientError):
    status, code, kind = 401, "invalid_api_key", "authentication_error"


class ModelNotFound(ClientError):
    status, code, kind = 404, "model_not_found", "not_found_error"

    @classmethod
    def of(cls, model: str) -> ModelNotFound:
        """The message is the same whether no worker serves the model or only this client may not use it."""
        return cls(f"the model {model!r} does not exist", param="model")


class RouteNotFound(ClientError):
    status, code, kind = 404, "not_found", "not_found_error"


class PreviousResponseNotFound(ClientError):
    code = "previous_response_not_found"


class SessionNotFound(ClientError):
    status, code, kind = 404, "not_found", "not_found_error"


class SessionBusy(ClientError):
    status, code, kind, retryable = 409, "session_busy", "conflict_error", True


class ConversationLocked(SessionBusy):
    status, code, kind = 400, "conversation_locked", "invalid_request_error"


class MethodNotAllowed(ClientError):
    status, code = 405, "method_not_allowed"


class BodyTimeout(ClientError):
    status, code, retryable = 408, "request_timeout", True


class RequestTooLarge(ClientError):
    status, code = 413, "request_too_large"


class UnsupportedEncoding(ClientError):
    status, code = 415, "unsupported_encoding"


class HostNotAllowed(ClientError):
    status, code = 421, "host_not_allowed"


class HeadersTooLarge(ClientError):
    status, code = 431, "headers_too_large"


class TenantLimited(ClientError):
    status, kind, retryable = 429, "rate_limit_error", True


class RateLimited(TenantLimited):
    code = "rate_limit_exceeded"


class ConnectionsLimited(RateLimited):
    pass


class BudgetExceeded(TenantLimited):
    code, retryable = "budget_exceeded", False


class SessionCorrupt(RouterError):
    code = "session_corrupt"


class WorkerError(RouterError):
    status, code, kind, retryable = 502, "worker_error", "api_error", True


class PoisonRequest(WorkerError):
    """``workers``: names of the workers that died while they served the request."""

    retryable = False

    def __init__(self, workers: Sequence[str]) -> None:
        super().__init__(f"the request was given up: {len(workers)} workers died under it, one after another")
        self.workers = workers


class WorkerTimeout(WorkerError):
    status, code = 504, "worker_timeout"


class Unavailable(RouterError):
    status, code, kind, retryable = 503, "overloaded", "service_unavailable_error", True


class NoWorkerAvailable(Unavailable):
    code = "no_worker_available"


class ModelUnavailable(Unavailable):
    code = "model_unavailable"


class Overloaded(Unavailable):
    pass


class WorkersBusy(Overloaded):
    pass


class StateUnavailable(Unavailable):
    code = "state_unavailable"


class Draining(Unavailable):
    code = "draining"
