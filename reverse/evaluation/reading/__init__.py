"""Reading words and truth: markup, English, the vocabulary of CHAIR, and what COCO images hold."""
