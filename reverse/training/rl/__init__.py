"""DPO and GRPO on top of TRL (extra `rl`): rewards, rows, and runs from recipes."""
