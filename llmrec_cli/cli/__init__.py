"""The command line: options in, text or JSON out.  Nothing else prints or chooses an exit code."""
