"""The commands of `reverse`, a module a group; `reverse/cli.py` registers them."""
