"""Labelled sentences: sources, splits without leaks, folds."""
