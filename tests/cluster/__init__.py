"""Gateways and runners on hosts of their own, which are network namespaces of this machine."""
