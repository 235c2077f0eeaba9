"""Pure functions on tensors: trie, legal softmax, losses, search.  Torch and stdlib only."""
