"""Simulators of external systems, each a server.

They import nothing else of this project, so they cannot share its mistakes.
"""
