"""Layer endpoint."""
