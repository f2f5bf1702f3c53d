"""LoRA adapters: their settings, further weights beside them, and merging."""
