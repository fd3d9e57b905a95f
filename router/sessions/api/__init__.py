"""The routes of sessions, responses and conversations. ``sessions.openai`` translates the latter two to chat completions."""
