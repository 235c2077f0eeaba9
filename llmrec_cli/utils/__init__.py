"""What every room needs: files, locks, text, progress."""
