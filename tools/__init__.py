"""Programs that maintain this repository: recordings of ComfyUI, and a ComfyUI with random weights."""
