"""The HTTP side: schemas, security, the Ray Serve application."""
