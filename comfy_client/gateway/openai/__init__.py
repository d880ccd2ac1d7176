"""OpenAI's Images API, served from your own endpoint. Jobs, images, keys and the web page are those of the shim.

docs/openai.md is the user documentation. The facts about OpenAI's API are those of the official SDK, version 3.57.
"""
