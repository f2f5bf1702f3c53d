"""All fuzzers by name."""

from __future__ import annotations

from tests.fuzz import answers, checkpoints, decoding, pictures, recipes, records, replies, texts

TARGETS = {
    module.TARGET.name: module.TARGET
    for module in (texts, records, answers, pictures, replies, recipes, checkpoints, decoding)
}
