"""Finished research: heads on frozen features."""
