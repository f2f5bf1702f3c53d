"""Running benchmarks: questions to a model, answers files, and reading them back."""
