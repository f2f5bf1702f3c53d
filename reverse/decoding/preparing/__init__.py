"""From a request to token ids, pictures and rules, in worker threads."""
