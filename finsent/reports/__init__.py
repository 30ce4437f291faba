"""Pages generated from artifacts: report, submission, the README's table."""
