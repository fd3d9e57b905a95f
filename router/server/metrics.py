"""Clients' connections, their keys, what is held for them, and the admin port."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping

from router.config.serving import LimitsConfig
from router.core.request.record import Record
from router.core.tenants.keyring import AuthRefusal
from router.core.tenants.memory import MemoryBudget
from router.runtime.metrics import Row, counter, gauge
from router.server.audit import Audit
from router.server.certificate import Certificate
from router.server.client_server import ClientServer
from router.server.data import DataPort
from router.server.failed_logins import MAX_ADDRESSES, FailedLogins
from router.server.key_file import MAX_KEYS, KeyFile
from router.server.parsing.pool import Parsers
from router.server.status.feed import StatusFeed

CUT_CAUSES = ("head_timeout", "head_size", "body_timeout", "too_many", "write_stall")


class Cuts:
    """Connections that the router ended because of what the client did, by cause."""

    def __init__(self) -> None:
        self.by_cause: Counter[str] = Counter(dict.fromkeys(CUT_CAUSES, 0))

    def __repr__(self) -> str:
        return f"Cuts({dict(self.by_cause)})"

    def observe(self, cause: str) -> None:
        """``cause``: one of CUT_CAUSES."""
        self.by_cause[cause] += 1


def client_rows(
    data: DataPort, clients: ClientServer, admins: ClientServer, cuts: Cuts, limits: LimitsConfig
) -> Iterable[Row]:
    """``clients``, ``admins``: connections to the data port and to the admin port."""
    return (
        gauge("live_requests", "Requests to the data port in progress.", lambda: data.live),
        gauge("client_connections", "Open connections to the data port.", lambda: clients.open_connections),
        gauge(
            "max_client_connections",
            "Most connections that the data port accepts: limits.max_connections, or less where the system grants fewer file "
            "descriptors.",
            lambda: clients.max_connections,
        ),
        counter(
            "cut_connections",
            "Client connections that the router ended because of what the client did, by cause.",
            lambda: cuts.by_cause,
            "cause",
        ),
        gauge(
            "head_bytes",
            "Bytes of request heads that have not arrived completely, of all connections together.",
            lambda: clients.head_bytes + admins.head_bytes,
        ),
        gauge(
            "max_head_bytes",
            "Most bytes of incomplete request heads, of all connections together (limits.max_total_head_bytes).",
            lambda: limits.max_total_head_bytes,
        ),
    )


def parsing_rows(parsers: Parsers) -> Iterable[Row]:
    return (
        gauge("parsing_waiting", "Costly bodies that wait for a parsing process.", lambda: parsers.turns.waiting),
        gauge("parsing_processes", "Processes that parse costly bodies.", lambda: parsers.processes),
        gauge("max_parsing_processes", "Most processes that parse costly bodies.", lambda: parsers.max_processes),
    )


def memory_rows(memory: MemoryBudget) -> Iterable[Row]:
    return (
        gauge(
            "held_bytes",
            "Bytes held in memory for clients' requests and answers, by kind.",
            lambda: memory.by_kind,
            "kind",
        ),
        gauge(
            "max_held_bytes",
            "Most bytes held in memory for clients' requests and answers, all kinds together (limits.max_held_bytes).",
            lambda: memory.max_bytes,
        ),
        counter(
            "held_refusals",
            "Requests and answers that were refused because no more memory may be held for them, by kind.",
            lambda: memory.refusals,
            "kind",
        ),
    )


def key_rows(keys: KeyFile | None, data: DataPort, limits: LimitsConfig) -> Iterable[Row]:
    """All zero where no keys are asked for."""

    def refusals() -> Mapping[str, int]:
        return {refusal.value: keys.refusals[refusal] if keys else 0 for refusal in AuthRefusal}

    return (
        counter("auth_refusals", "Requests without a valid API key, by reason.", refusals, "reason"),
        counter(
            "keys_reload_failures",
            "Failed reads of auth.keys_file. The keys that were read last stay in use.",
            lambda: keys.failures if keys else 0,
        ),
        gauge("keys_loaded", "API keys that are loaded.", lambda: keys.loaded_keys if keys else 0),
        gauge("max_keys", "Most API keys that may be loaded.", lambda: MAX_KEYS),
        gauge(
            "peak_key_connections",
            "Connections of the API key that has most of them open now.",
            lambda: data.key_connections.peak,
        ),
        gauge(
            "max_key_connections",
            "Most connections that one API key may have open (limits.max_key_connections); 0: no limit.",
            lambda: limits.max_key_connections,
        ),
    )


def certificate_rows(certificate: Certificate | None) -> Iterable[Row]:
    return [
        counter(
            "certificate_reload_failures",
            "Failed reads of the data port's certificate. The certificate that was read last stays in use.",
            lambda: certificate.failures if certificate else 0,
        )
    ]


def admin_rows(
    admins: ClientServer, feed: StatusFeed, failed_logins: FailedLogins, audit: Audit, decisions: deque[Record]
) -> Iterable[Row]:
    return (
        gauge("remembered_decisions", "Decisions that the admin port can show.", lambda: len(decisions)),
        gauge(
            "max_remembered_decisions",
            "Most decisions that the admin port can show (admin.decisions).",
            lambda: decisions.maxlen or 0,
        ),
        gauge("admin_connections", "Open connections to the admin port.", lambda: admins.open_connections),
        gauge("max_admin_connections", "Most connections that the admin port accepts.", lambda: admins.max_connections),
        gauge("status_viewers", "Viewers of the status page now.", lambda: feed.viewers),
        gauge(
            "max_status_viewers",
            "Viewers of the status page allowed at once (admin.max_viewers).",
            lambda: feed.max_viewers,
        ),
        gauge(
            "admin_wrong_tokens",
            "Addresses that sent a wrong admin token in the last ten seconds.",
            lambda: failed_logins.addresses,
        ),
        gauge(
            "max_admin_wrong_tokens",
            "Most addresses that the router remembers for a wrong admin token.",
            lambda: MAX_ADDRESSES,
        ),
        gauge(
            "audit_waiting_lines",
            "Lines that wait to be written to the audit log, for a second at most.",
            lambda: audit.waiting,
        ),
    )
