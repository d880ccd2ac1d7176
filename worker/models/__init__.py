"""Downloads and locates the model files that ComfyUI loads, according to models.txt.

It depends only on requests, tqdm, and the modules of comfy_core that the Dockerfile copies for it. The image layer with
17 GB of weights is rebuilt when one of these changes, so further imports would rebuild it more often.
"""
