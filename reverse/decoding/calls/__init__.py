"""Calls of users: their requests in the engine, and the answers, streams and errors that come back."""
