"""One module for each source of labelled sentences."""
