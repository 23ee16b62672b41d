"""What should happen: pure decisions, `step(state, event, now) -> (state, actions)`. No I/O, no clock, no threads."""
