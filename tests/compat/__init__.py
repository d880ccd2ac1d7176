"""Callers of worker-comfyui and of ComfyUI: their requests and polling loops, unchanged, against this worker."""
