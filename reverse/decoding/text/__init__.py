"""Text of token ids: detokenizing, sentence ends, stop strings and hints."""
