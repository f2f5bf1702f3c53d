"""Benchmarks whose answers `reverse.grading` grades: a question has a right answer of a known form."""
