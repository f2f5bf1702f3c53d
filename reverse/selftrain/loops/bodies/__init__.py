"""The work of the stages of loops: questions, answers, pools of drafts, rows, training, reports."""
