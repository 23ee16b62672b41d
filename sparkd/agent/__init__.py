"""The daemon: sources become events, `control.step` decides, effects carry out. It decides nothing itself."""
