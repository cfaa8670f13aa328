"""The web page over the library: it asks and shows, on this machine alone."""
