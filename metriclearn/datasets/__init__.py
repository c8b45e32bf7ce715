"""Product tables: one reader a data set."""
