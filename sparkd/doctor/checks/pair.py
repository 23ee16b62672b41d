"""What only several nodes together show: their boundaries side by side."""
