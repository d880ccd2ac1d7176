"""Simulators of RunPod: the queue API for clients and workers, the management API, and a worker without ComfyUI."""
