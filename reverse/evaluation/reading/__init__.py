"""Read answers files, words and truth: markup, English, CHAIR's vocabulary, and what COCO images hold."""
