"""Curation: teachers and judges answer, reflect on, correct, rate and explain the questions of drafts."""
