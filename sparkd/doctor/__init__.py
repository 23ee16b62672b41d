"""Questions about a node, asked by the launch gate and by a person alike: one implementation, two callers."""
