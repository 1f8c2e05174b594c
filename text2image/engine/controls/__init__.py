"""ControlNets as rows of the running batch: their files, and passes in which some rows are steered by them."""
