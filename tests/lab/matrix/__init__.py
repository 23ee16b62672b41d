"""The fault matrix: what is broken (cases), who keeps the pair up (keepers), what came of it (rows)."""
