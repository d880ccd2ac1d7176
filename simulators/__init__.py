"""Simulators of external systems, as servers on real sockets: ComfyUI, RunPod, Hugging Face and Scenario.

They import nothing else of this project, so they cannot share its mistakes.
"""
