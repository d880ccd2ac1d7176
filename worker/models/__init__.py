"""Downloads and locates the model files that ComfyUI loads, according to models.txt.

It depends only on requests, tqdm, comfy_core.errors, comfy_core.contract and worker.command_line. The image layer with
17 GB of weights is rebuilt when one of these changes, so further imports would rebuild it more often.
"""
