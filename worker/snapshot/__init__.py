"""Installs ComfyUI and the custom nodes of snapshot.json; a node that cannot be restored exactly is an error.

It depends only on git, the standard library, and the modules of comfy_core that the Dockerfile copies for it, because
it runs in an image build with Debian's Python, which has no packages. `requirements` alone runs in ComfyUI's Python.
"""
