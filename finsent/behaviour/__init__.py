"""Behaviour suite: what a model has to get right, capability by capability, and whether it does."""
