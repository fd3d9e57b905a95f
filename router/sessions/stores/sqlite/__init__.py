from router.sessions.stores.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]
