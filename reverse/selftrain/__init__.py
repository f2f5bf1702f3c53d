"""Self-training: curation of drafts by teachers and judges, and the loops that train on them."""
