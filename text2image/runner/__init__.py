"""The runner: one engine behind gRPC v1 on a private socket, one process per device."""
