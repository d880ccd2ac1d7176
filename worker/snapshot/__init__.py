"""Restores snapshot.json (ComfyUI-Manager's format) exactly; anything that cannot be restored is an error.

It depends only on git, the standard library, comfy_core.errors, comfy_core.contract and worker.command_line: it runs in
an image build before any package is installed.
"""
