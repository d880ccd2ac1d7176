"""Tools for own workflows: reads node types, converts the editor's format, proposes inputs, and checks templates."""
