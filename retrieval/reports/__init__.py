"""Pages, charts and files that show an evaluation."""
