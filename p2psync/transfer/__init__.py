"""Which content to ask of whom, how much at once and how fast: decisions only, with the time as an argument."""
