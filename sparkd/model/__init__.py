"""What things are: pure data. No I/O, no decisions, and no import of another room."""
