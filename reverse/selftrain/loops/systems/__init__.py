"""One file for each system: its recipe, and the stages of its loop."""
