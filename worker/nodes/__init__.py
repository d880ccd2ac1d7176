"""Custom nodes for ComfyUI. ComfyUI imports these files, not the worker."""
