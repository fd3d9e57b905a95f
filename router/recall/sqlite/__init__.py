from router.recall.sqlite.index import IndexLimits, SqliteIndex, Weights

__all__ = ["IndexLimits", "SqliteIndex", "Weights"]
