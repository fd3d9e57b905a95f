"""How one attempt on one worker can fail. No client sees these errors: the next worker is tried, or one error stands for all.

AttemptFailed
├── WorkerDied          it answers no probes, broke off, or sent bytes that are not HTTP
│   ├── WorkerHungUp    it closed or reset the connection, which may have been idle for too long
│   └── CannotConnect   no connection: nothing of the request was sent
├── WorkerErred         an error event in its stream
├── WorkerSilent        a deadline passed
│   └── WorkerSlow      a deadline passed, but its polls show work: it is well
└── ReplyTooLarge       its answer is larger than may be held
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Failure(StrEnum):
    """Why an attempt failed: a label of the retry counter, and a word of records."""

    CONNECT = "connect"
    DIED = "died"
    ERROR = "error"
    TIMEOUT = "timeout"
    TOO_LARGE = "too_large"
    BUSY = "busy"
    """The worker has no room."""
    NO_MODEL = "no_model"
    """The worker does not serve a model of its list, which is old."""
    LEFT = "left"
    """The worker left the fleet while it was asked where an answer broke."""


class AttemptFailed(Exception):
    cause: ClassVar[Failure]


class WorkerDied(AttemptFailed):
    cause = Failure.DIED


class WorkerHungUp(WorkerDied):
    pass


class CannotConnect(WorkerDied):
    cause = Failure.CONNECT


class WorkerErred(AttemptFailed):
    cause = Failure.ERROR


class WorkerSilent(AttemptFailed):
    cause = Failure.TIMEOUT


class WorkerSlow(WorkerSilent):
    pass


class ReplyTooLarge(AttemptFailed):
    cause = Failure.TOO_LARGE
