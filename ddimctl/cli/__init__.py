"""The command line: thin commands over the library. Nothing outside this package imports it."""
