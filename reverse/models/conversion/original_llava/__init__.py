"""The original LLaVA layout, turned into transformers' LLaVA.

| module | |
|---|---|
| `layout` | what a folder holds, read from its config and its tensor names |
| `weights` | the names of then and now, the tower, LoRA matrices, row by row and tensor by tensor |
| `words` | tokenizer, `<image>`, chat template |
| `pictures` | the vision tower's configuration and its preprocessing |
| `convert` | all of it together |
"""

from reverse.models.conversion.original_llava.llava_converter import convert_original_llava
from reverse.models.conversion.original_llava.llava_layout import Layout, read_layout

__all__ = ["Layout", "convert_original_llava", "read_layout"]
