"""Answering texts: one, many, or a file of them."""
