"""The bridge to Scenario.com: forwards what the shim does not serve itself, and makes ids valid on both sides."""
