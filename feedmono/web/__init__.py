"""What is told over HTTP: metrics, readiness, a page."""
