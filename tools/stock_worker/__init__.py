"""Requests to worker-comfyui, and the recorded responses of both workers: the source of docs/worker-comfyui.md."""
