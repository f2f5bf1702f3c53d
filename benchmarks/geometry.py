"""Models of the published sizes with random weights, and a script that tells every contender what to say.

The script is imposed on the logits after the true forward pass: the same tokens, phrases and corrections for
everyone. Attempt a of an answer says `tokens[a]`; where a phrase closes, p(`</UN>`) is high as long as the
phrase has been rejected less often than `rejections` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from experiments.tiny_models import build_tiny_llava, build_tiny_qwen
from reverse.tokens import add_tokens, find_token_ids

NAMES = ("llava7b", "qwen3b", "qwen7b")
_CLIP = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_QWEN_VISION = {
    "hidden_size": 1280, "intermediate_size": 3420, "num_hidden_layers": 32, "num_attention_heads": 16,
    "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]}


def _text(hidden: int, mlp: int, layers: int, heads: int, kv: int, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
    }  # fmt: skip


def build(name: str, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> tuple[Any, Any]:
    """(model, processor) of one of `NAMES`; "tiny" for a rehearsal on a CPU."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            if name == "tiny":
                model, processor = build_tiny_llava()
            elif name == "llava7b":
                model, processor = build_tiny_llava(
                    vision=_CLIP, text=_text(4096, 11008, 32, 32, 32, 32064), image_size=336, patch_size=14
                )
            else:
                sizes = {
                    "qwen3b": _text(2048, 11008, 36, 16, 2, 151936),
                    "qwen7b": _text(3584, 18944, 28, 28, 4, 152064),
                }[name]
                model, processor = build_tiny_qwen(
                    vision=_QWEN_VISION,
                    text=sizes | {"rope_parameters": _ROPE},
                    image_size=560,
                    tied=name == "qwen3b",
                )
    finally:
        torch.set_default_dtype(before)
    add_tokens(model, processor)
    return model.to(device), processor


def picture(seed: int, side: int = 560) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(
        torch.randint(0, 255, (side, side, 3), generator=generator, dtype=torch.uint8).numpy()
    )


@dataclass(frozen=True, eq=False)
class Script:
    """What is said: `tokens` (attempts, positions) int64 and `suspect` alike, bool: p is high there.

    `half`: rows of odd number begin at attempt 1, so that half as many phrases are rejected in a batch.
    """

    tokens: torch.Tensor
    suspect: torch.Tensor
    half: torch.Tensor
    un: int

    @classmethod
    def room(cls, attempts: int, length: int, un: int, device: Any) -> Script:
        """An empty one that others are loaded into, so that a captured step need not be captured again."""
        tokens = torch.zeros(attempts, length, dtype=torch.int64, device=device)
        return cls(tokens, tokens.bool(), torch.zeros((), dtype=torch.bool, device=device), un)

    def load(self, other: Script) -> None:
        attempts, length = other.tokens.shape
        self.half.copy_(other.half)
        for mine, given in ((self.tokens, other.tokens), (self.suspect, other.suspect)):
            mine[:attempts, :length].copy_(given)
            mine[attempts:, :length].copy_(given[-1:].expand(len(mine) - attempts, -1))

    def impose(self, logits: torch.Tensor, position: torch.Tensor, attempt: torch.Tensor) -> None:
        """In place, on logits (rows, vocabulary) at answer positions (rows,) in attempts (rows,)."""
        odd = torch.arange(len(logits), device=logits.device) % 2 == 1
        attempt = torch.where(self.half & odd & (attempt == 0), 1, attempt)
        at = position.clamp(0, self.tokens.shape[1] - 1)
        of = attempt.clamp(0, self.tokens.shape[0] - 1)
        chosen, suspect = self.tokens[of, at], self.suspect[of, at]
        logits.clamp_(max=-40.0)  # whatever the forward pass said is now out of the way
        logits.scatter_(1, chosen[:, None], 20.0)
        logits[:, self.un] = torch.where(suspect, 19.0, -40.0)

    def to(self, device: Any) -> Script:
        return Script(self.tokens.to(device), self.suspect.to(device), self.half.to(device), self.un)


def script(
    processor: Any, eos: int, length: int, rejected: int, every: int = 10, phrase: int = 4, half: bool = False
) -> Script:
    """An answer of `length` ids, the last of them `eos`; a phrase of `phrase` ids closes at every `every`-th.

    A sentence ends before each phrase. The first `rejected` phrases are rejected once each.
    """
    tags = find_token_ids(processor.tokenizer)
    decode = processor.tokenizer.decode  # letters: half characters, which no model says often, cost more time
    letters = [i for i in range(60, 260) if decode([i], skip_special_tokens=True).isalpha()]
    words = [i for i in letters if i not in tags][:100]
    (stop,) = processor.tokenizer.encode(".", add_special_tokens=False)
    attempts = rejected + 1
    tokens = torch.empty(attempts, length, dtype=torch.int64)
    suspect = torch.zeros(attempts, length, dtype=torch.bool)
    closes = list(range(every, length - 1, every))
    for a in range(attempts):
        tokens[a] = torch.tensor([words[(7 * i + 3) % len(words)] for i in range(length)])
        for n, close in enumerate(closes):
            tokens[a, close] = tags.cn
            tokens[a, close - phrase - 1] = tags.span
            tokens[a, close - phrase - 2] = stop
            again = 1 if a > n else 0  # said differently once it was rejected
            for i in range(close - phrase, close):
                tokens[a, i] = words[(11 * i + 5 + again * 17) % len(words)]
            suspect[a, close] = n < rejected and a <= n
        tokens[a, -1] = eos
    return Script(tokens, suspect, torch.tensor(half), tags.un)
