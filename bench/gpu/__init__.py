"""Measures ComfyUI's launch flags on this machine's GPU, with model files of the real size and random weights."""
