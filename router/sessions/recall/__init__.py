"""What has left the window stays searchable: indexes of sessions' items, by words and by meaning."""
