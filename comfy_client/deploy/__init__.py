"""One command from deploy.toml to an endpoint that makes pictures: what is wanted, what is there, what to change.

`description` reads the file, `desired` and `diff` decide (pure), `offers` has the prices, `api` and `graphql` talk to
RunPod, `answers` reads its errors, `steps` is the order. It deploys nothing but RunPod's template and endpoint.
"""
