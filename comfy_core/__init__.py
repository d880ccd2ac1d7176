"""What the client and the worker share: the request, its errors, workflows, images, HTTP, and one ComfyUI.

It imports none of the other packages.
"""

__version__ = "0.1.0"
