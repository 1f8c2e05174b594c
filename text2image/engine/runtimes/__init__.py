"""What executes a model's networks: torch, or OpenVINO on a CPU. Families know `Networks` alone."""
