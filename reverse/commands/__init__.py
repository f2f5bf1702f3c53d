"""The commands that do not stand in cli.py: each module offers `register(app)`."""
