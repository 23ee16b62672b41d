"""Configuration files become model objects, or one error that names file, line and key."""
