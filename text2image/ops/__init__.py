"""What an operator starts: keys, health check, prefetch, the page beside a server."""
