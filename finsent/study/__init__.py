"""Cross-validated studies: plans, rows, tests and summaries."""
