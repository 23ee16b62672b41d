"""A deterministic simulation: N nodes on a virtual clock, each running exactly `sparkd.control`."""
