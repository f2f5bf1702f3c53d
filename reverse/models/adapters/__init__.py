"""LoRA adapters: their settings, loose weights beside them, and merging."""
