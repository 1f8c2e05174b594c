"""`python -m training.train`: every stage in order, each from its last checkpoint.

`--decay N` makes a model out of the trunk instead: N steps with a falling rate, on a branch of their own.
"""

import argparse
import os
import sys

from training.paths import state_dir, with_environment


def main() -> int:
    """Run until the target is reached or a signal asks to stop; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--until", type=int, help="last step of the trunk (default: until stopped)")
    parser.add_argument(
        "--decay", type=int, help="branch off the trunk and decay over so many steps"
    )
    arguments = parser.parse_args()

    from training import autoencoder, decoder, diffusion, text
    from training.running import Stop, Stopped

    (state_dir() / "trainer.pid").write_text(f"{os.getpid()}\n")
    stop = Stop()
    try:
        text.train(stop)
        autoencoder.train(stop)
        decoder.train(stop)
        if arguments.decay:
            diffusion.train_branch(arguments.decay, stop)
        else:
            diffusion.train_trunk(arguments.until, stop)
    except Stopped:
        print("stopped; the next run goes on from the checkpoint")
    return 0


if __name__ == "__main__":
    with_environment("training.train")
    sys.exit(main())
