"""Draft records: a question, its right answer, and answers that models gave to it, with their verdicts."""
