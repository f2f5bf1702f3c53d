"""The sections of a recipe for one kind of run each: preferences (DPO), rewards (GRPO), values."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from reverse.training.recipes.recipe_section import Section

__all__ = ["SECTIONS", "Preferences", "Rewards", "Values"]

SECTIONS = ("dpo", "grpo", "value")  # of a recipe, each for the kind of its name


class Preferences(Section):
    """Direct preference optimisation (kind: dpo)."""

    beta: float = Field(default=0.1, gt=0)  # how much the model is kept near the one it started from
    loss: Literal["sigmoid", "hinge", "ipo", "robust"] = "sigmoid"
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)  # share of pairs that are the wrong way round


class Rewards(Section):
    """Group relative policy optimisation (kind: grpo)."""

    rewards: Literal["default", "paper", "upstream", "plain"] = "default"  # preset
    generations: int = Field(default=8, ge=2)  # completions of a question, compared with each other
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)  # 0: all tokens
    max_new_tokens: int = Field(default=2048, ge=1)
    beta: float = Field(default=0.0, ge=0)  # of the KL term to the model it started from
    clip_low: float = Field(default=0.2, gt=0)  # the ratio of probabilities is kept above 1 less this
    clip_high: float | None = Field(default=None, gt=0)  # and below 1 plus this; none: as clip_low
    iterations: int = Field(default=1, ge=1)  # updates on the same completions
    loss: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = "dapo"  # how the losses of tokens are averaged
    scale: Literal["group", "batch", "none"] = "group"  # deviation that advantages are divided by
    mask_truncated: bool = False  # completions that were cut count for nothing
    # Least and largest share of right ones among a question's recorded drafts; rows without one are kept.
    pass_rate_low: float = Field(default=0.0, ge=0, le=1)
    pass_rate_high: float = Field(default=1.0, ge=0, le=1)
    # Who draws completions: TRL, or our decoder. "keep_phrases": for models that write the three tokens;
    # "checked": phrases are checked, for measuring (optim.lr=0).
    rollout: Literal["plain", "keep_phrases", "checked"] = "plain"


class Values(Section):
    """A value head (kind: value)."""

    backbone: Literal["frozen", "lora"] = "frozen"  # "lora": low-rank matrices are trained with the head
    head_lr: float = Field(default=1e-3, gt=0)  # optim.lr is that of the backbone
    held_out: float = Field(
        default=0.1, ge=0, lt=1
    )  # share of the questions that are measured, not trained on
    tagged: bool = True  # answers carry the three tokens, as a tagged model writes them
