"""An HTTP server of other services' APIs, whose jobs run on a provider.

`server` is the application and `serve` runs it. The application has the APIs of the packages `scenario` and `openai`.
Jobs, images, keys and the web page belong to `scenario`, and `openai` uses them.
"""
