"""Generates the pages and tables of docs/ that are made from code. `scripts/docs` runs it."""
