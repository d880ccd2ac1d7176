"""Checks, decodes and encodes images. Untrusted image files are processed in a child process."""
