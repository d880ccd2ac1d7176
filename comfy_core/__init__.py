"""Shared by the client and the worker: requests, errors, workflows, images, HTTP, and the ComfyUI client.

Imports none of the other packages.
"""

__version__ = "0.1.0"
