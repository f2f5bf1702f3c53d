"""The commands of `reverse` by theme: each module offers `register(app)`, which `reverse.cli` calls."""
