"""Generates all images of a game from one file: plans them, generates each once, and can upload them to a bucket."""
