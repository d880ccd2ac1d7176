"""Deploys the worker that deploy.toml describes to RunPod, as a template and an endpoint.

`description` reads the file, and `variables` declares the environment variables. `desired` builds the request bodies,
`diff` compares them with the current state, and `offers` selects GPU pools and their prices. `desired`, `diff` and
`offers` do no I/O. `plan` computes what to change, and `apply` changes it. `api` and `graphql` call RunPod, and
`responses` parses RunPod's errors.
"""
