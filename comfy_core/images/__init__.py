"""Images, bytes to bytes: checked, decoded and encoded, in a child process where the bytes are a caller's."""
