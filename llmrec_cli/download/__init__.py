"""Official files: where they are, and how they come here whole."""
