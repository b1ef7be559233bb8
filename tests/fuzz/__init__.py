"""Everything that parses bytes from outside, with bytes nobody meant: `python -m tests.fuzz`, a little in every run.

A target feeds one parser and says which errors may leave it; `rules` judges one input; `mutate` breaks valid encodings
where it hurts; `campaign` does it a million times, led by coverage.
"""
