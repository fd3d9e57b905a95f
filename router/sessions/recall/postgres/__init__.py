from router.sessions.recall.postgres.index import PostgresIndex, PostgresLimits

__all__ = ["PostgresIndex", "PostgresLimits"]
