"""The tasks of curation: what a teacher is asked, and what becomes of its replies."""
