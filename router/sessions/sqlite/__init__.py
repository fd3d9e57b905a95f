from router.sessions.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]
