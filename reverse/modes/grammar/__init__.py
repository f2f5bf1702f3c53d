"""The tags in which published checkpoints write a turn: reflections, and answers in stages."""
