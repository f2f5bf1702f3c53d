"""What the stages of loops do: questions, answers, pools of drafts, rows, training, reports."""
