"""Ports, TLS, gRPC and its messages."""
