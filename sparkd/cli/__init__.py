"""What a person types. Parses, calls, prints. Decides nothing."""
