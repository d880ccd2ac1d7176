"""Deploys the worker from deploy.toml to RunPod, as a template and an endpoint.

`description` reads the file. `desired` builds the request bodies, `diff` compares them with the current state, and
`offers` has the prices; these three do no I/O. `plan` computes what to change, and `apply` changes it. `api` and
`graphql` call RunPod, and `responses` parses its errors.
"""
