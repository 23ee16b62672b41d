"""Layer driver."""
