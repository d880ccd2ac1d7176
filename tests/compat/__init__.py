"""Callers of worker-comfyui and of ComfyUI: their unchanged requests and polling loops, with this worker."""
