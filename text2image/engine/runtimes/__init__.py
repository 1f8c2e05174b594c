"""What executes a model's networks: torch, or OpenVINO on a CPU. Families know `Networks` alone."""

# The folder beside a model's other ones, in a Bento for instance, of its networks as OpenVINO reads them.
SHIPPED = "openvino"
