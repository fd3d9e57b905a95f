"""Services that any room may use: background tasks, logs, tables of metrics, the SQLite thread, clocks. Knows no other room."""
