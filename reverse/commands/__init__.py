"""Commands that have a module of their own; each offers `register(app)`."""
