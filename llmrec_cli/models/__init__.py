"""Backbones, tokenizers, and conventional models: whatever ranks."""
