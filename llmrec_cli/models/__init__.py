"""Backbones, tokenizers and conventional models."""
