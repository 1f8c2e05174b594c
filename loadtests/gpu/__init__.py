"""What `loadtests/gpu.sh` measures on a machine with a GPU, with random weights of true size and no downloads."""
