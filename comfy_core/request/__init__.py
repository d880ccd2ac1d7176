"""A request of the wire: from untrusted JSON to graphs and uploads."""
