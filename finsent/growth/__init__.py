"""Dendrites grown by PerforatedAI while a model trains."""
