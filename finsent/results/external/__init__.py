"""Runs of models that were not trained here: their files, and what the leaderboard says of them."""
