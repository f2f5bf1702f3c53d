"""Recipes: one YAML file describes one training run."""
