"""What a caller holds: calls, handles, streams and failures."""
