"""What workers do for jobs: see docs/explanation/jobs.md."""
