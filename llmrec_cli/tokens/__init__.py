"""Semantic IDs of a catalogue: vectors of items, quantizers, collisions, quality."""
