"""Downloads and locates the model files that ComfyUI loads, according to models.txt.

The download command depends only on requests, tqdm, and the modules that the Dockerfile copies for it: here, all but
`folders` and `manager`. The image layer with 17 GB of weights is rebuilt when one of these modules changes, so further
imports would cause more rebuilds.
"""
