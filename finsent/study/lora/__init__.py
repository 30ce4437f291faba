"""Finished research: many LoRA runs trained side by side."""
