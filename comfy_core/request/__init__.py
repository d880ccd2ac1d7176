"""Request parsing: from untrusted JSON to graphs and uploads."""
