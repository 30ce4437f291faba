"""Calibration for sources that a model never saw, fitted where each source was left out in turn."""
