"""The host: one file for each part of it that sparkd reads or changes. Carries out, decides nothing."""
