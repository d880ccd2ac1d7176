"""snapshot.json, in ComfyUI-Manager's format, and a restore that takes it at its word: all of it, or an error.

It needs git, the standard library, and comfy_core.errors with comfy_core.contract, nothing else of ours: it runs in
an image's build, before anything is installed.
"""
