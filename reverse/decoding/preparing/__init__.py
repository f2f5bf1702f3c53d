"""Prepare requests in worker threads: token ids, pictures and rules of answers."""
