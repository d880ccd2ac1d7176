"""Simulators of RunPod: the queue API with its worker protocol, and REST v2."""
