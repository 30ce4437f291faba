"""Backbones, their weights and tokenizers, adapters, and dendritic layers for inference."""
