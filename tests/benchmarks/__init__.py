"""What the figures in the documents come from: ``make bench-NAME``."""
