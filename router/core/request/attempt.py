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
