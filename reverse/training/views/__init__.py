"""Views: pure functions from draft records to training records, one for each ability that a mode needs of a
model.
"""
