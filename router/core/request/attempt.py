"""How one attempt on one worker can fail. Never seen by a client: the next worker is, or one error for all of them.

AttemptFailed
├── WorkerDied          fell silent with its probes, broke off, or spoke what is not HTTP
│   ├── WorkerHungUp    closed or reset the connection, which may have been idle for too long
│   └── CannotConnect   not even a connection: nothing of the request was sent
├── WorkerErred         said in a stream that it cannot go on
├── WorkerSilent        a deadline passed
│   └── WorkerSlow      and its polls show that it is at work: it is not ill
└── ReplyTooLarge       the worker answers, but with more than may be held
"""

from __future__ import annotations

from typing import ClassVar


class AttemptFailed(Exception):
    cause: ClassVar[str]
    """A label of the retry counter."""


class WorkerDied(AttemptFailed):
    cause = "died"


class WorkerHungUp(WorkerDied):
    pass


class CannotConnect(WorkerDied):
    cause = "connect"


class WorkerErred(AttemptFailed):
    cause = "error"


class WorkerSilent(AttemptFailed):
    cause = "timeout"


class WorkerSlow(WorkerSilent):
    pass


class ReplyTooLarge(AttemptFailed):
    cause = "too_large"
