from router.recall.sqlite.index import IndexLimits, SqliteIndex

__all__ = ["IndexLimits", "SqliteIndex"]
