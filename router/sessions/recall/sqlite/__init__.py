from router.sessions.recall.sqlite.index import IndexLimits, SqliteIndex

__all__ = ["IndexLimits", "SqliteIndex"]
