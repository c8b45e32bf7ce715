"""Exact ranks by counting, in NumPy."""
