"""Layer memory."""
