"""The command line. Only this package prints, and chooses exit codes."""
