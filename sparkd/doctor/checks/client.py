"""Layer client."""
