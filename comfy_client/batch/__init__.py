"""Generates all images of a game from one file: plans them, generates each once, and uploads them to a bucket."""
