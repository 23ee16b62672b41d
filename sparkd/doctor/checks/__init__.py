"""The checks, one file a layer; a file's order is the order in which they are told."""
