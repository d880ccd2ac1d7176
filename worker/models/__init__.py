"""Locates the model files of a worker's ComfyUI, and downloads those of models.txt."""
