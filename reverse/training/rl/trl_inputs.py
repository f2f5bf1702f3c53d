"""Make TRL tokenise prompts and answers as decoding does, and check that on some rows.

    processor = copy_for_trl(processor)
    check_same_ids("dpo", processor, original, family, rows)

TRL tokenises what the chat template writes without special tokens. LLaVA's template leaves the first token
(`<s>`) to the tokenizer, so pairs would be trained without it: the template of the copy writes it. TRL also
tokenises answers on their own, which some tokenizers do not do as within a text; that is found by the check.
"""

from __future__ import annotations

import copy
from typing import Any

from reverse.compatibility import IncompatibleLibraryError
from reverse.errors import RequestError
from reverse.models.families import Family
from reverse.models.inputs.prompt_inputs import prepare_inputs
from reverse.training.data.encoding import Encoder, Turn
from reverse.training.rl.rl_rows import RowFile

__all__ = ["check_same_ids", "copy_for_trl"]

CHECKED_ROWS = 4


def copy_for_trl(processor: Any) -> Any:
    """Copy a processor, with a chat template that begins with the token that the tokenizer puts first."""
    copied = copy.deepcopy(processor)
    tokenizer = copied.tokenizer
    starts_itself = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    if starts_itself and "bos_token" not in copied.chat_template:
        copied.chat_template = "{{ bos_token }}" + copied.chat_template
    return copied


def check_same_ids(kind: str, copied: Any, original: Any, family: Family, rows: RowFile) -> None:
    """Compare TRL's ids of the first rows with those of decoding and training.

    Args:
        copied: the processor that TRL is given.
        original: the model's own.

    Raises RequestError if the ids differ: what is trained would not be what is decoded.
    """
    for number in range(min(CHECKED_ROWS, len(rows))):
        row = rows[number]
        ours = _decoding_ids(original, family, row)
        if _trl_prompt_ids(copied, row) != ours:
            raise _report_difference(rows, number, "the prompt")
        if kind == "dpo":
            _check_answers(copied, original, family, rows, number, row, len(ours))


def _check_answers(
    copied: Any, original: Any, family: Family, rows: RowFile, number: int, row: dict[str, Any], prompt: int
) -> None:
    from trl.trainer import dpo_trainer

    if not hasattr(dpo_trainer, "DataCollatorForVisionPreference"):
        raise IncompatibleLibraryError("trl", "it has no DataCollatorForVisionPreference")
    batch = dpo_trainer.DataCollatorForVisionPreference(copied)([copy.deepcopy(row)])
    encoder = Encoder(original)
    for name, ids, mask in zip(
        ("chosen", "rejected"), batch["input_ids"], batch["attention_mask"], strict=True
    ):
        given = ids[mask.bool()].tolist()
        answer = "".join(part["text"] for part in row[name][0]["content"])
        own = encoder.row([Turn("a", answer)], image_tokens=None)
        target = own.ids[own.labels != -100].tolist()
        if given[prompt : prompt + len(target)] != target:  # the template may end the turn with a line break
            raise _report_difference(rows, number, f"the {name} answer")


def _decoding_ids(processor: Any, family: Family, row: dict[str, Any]) -> list[int]:
    inputs = prepare_inputs(processor, None, [_with_pictures(row)], family)
    return [int(each) for each in inputs["input_ids"][0]]


def _trl_prompt_ids(processor: Any, row: dict[str, Any]) -> list[int]:
    """Encode the prompt as GRPOTrainer and the collator for preferences do."""
    made = processor.apply_chat_template(
        conversation=[_with_pictures(row)], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return [int(each) for each in made["input_ids"][0]]


def _with_pictures(row: dict[str, Any]) -> list[dict[str, Any]]:
    pictures = iter(row["images"])
    return [
        {
            "role": turn["role"],
            "content": [
                {"type": "image", "image": next(pictures)} if part["type"] == "image" else part
                for part in turn["content"]
            ],
        }
        for turn in row["prompt"]
    ]


def _report_difference(rows: RowFile, number: int, what: str) -> RequestError:
    return RequestError(
        f"TRL tokenises {what} of row {number + 1} of {rows.path} in another way than decoding does, so "
        "another text would be trained than is decoded: this tokenizer or chat template does not go with "
        "TRL; take kind=sft"
    )
