"""From image files to stored vectors."""
