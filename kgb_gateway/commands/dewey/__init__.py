"""``kgb dewey``: what has been recorded, found again. One module for each group of its commands."""
