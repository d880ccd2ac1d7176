"""Restores snapshot.json (ComfyUI-Manager's format) exactly; anything that cannot be restored is an error.

It depends only on git, the standard library, and the modules of comfy_core that the Dockerfile copies for it: it runs
in an image build before any package is installed.
"""
